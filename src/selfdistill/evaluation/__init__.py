"""Evaluation: predictions of every exit, and metrics from predictions."""
