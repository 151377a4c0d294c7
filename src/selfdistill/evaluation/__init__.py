"""Evaluation: what networks predict of images, and metrics of predictions."""
