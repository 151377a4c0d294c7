"""Summaries of what analyses find: statistics, tables and figures, made from what an analysis says of its numbers."""

from pathlib import Path

# of every figure, also of those that a machine without SciPy draws
STYLE = Path(__file__).with_name("style.mplstyle")
# The confidence level of every interval but those that a family of tests widens; 1 - LEVEL is the error of a whole
# family of declared contrasts, and of any other test. Texts take it from here.
LEVEL = 0.95
AT_LEVEL = f"{100 * LEVEL:g} %"
AT_ERROR = f"{100 * (1 - LEVEL):g} %"
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
