"""Summaries of what analyses find: statistics, tables and figures, made from what an analysis says of its numbers."""
