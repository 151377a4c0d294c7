"""Reporting: records -> tables -> figures -> page."""
