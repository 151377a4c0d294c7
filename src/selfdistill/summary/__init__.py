"""Summaries of what analyses find: statistics, tables and figures, made from what an analysis says of its numbers."""

from pathlib import Path

# of every figure, also of those that a machine without SciPy draws
STYLE = Path(__file__).with_name("style.mplstyle")
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
