"""Statistics of a few seeds: intervals, paired differences, verdicts."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from selfdistill.errors import UserError

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half-width of its 95 % t-interval; the half-width is NaN below two values.

    Raises UserError for no values.
    """
    if not (n := len(values)):
        raise UserError("the mean of 0 values is not defined; allowed: at least 1 value")
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.asarray(values, float).std(ddof=1) / math.sqrt(n))


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t-test that the mean difference is zero; NaN below two pairs.

    Equal differences, which a small test set gives easily because accuracies go in steps of an image, have no
    spread to compare the mean with: t would be infinite.  Only their signs are used: p = 2 / 2^n.
    """
    if len(differences) < 2:
        return math.nan
    if np.ptp(np.asarray(differences, float)) < 1e-9:  # of percentages: far below one image, above what rounding leaves
        return 1.0 if abs(differences[0]) < 1e-9 else 2 / 2 ** len(differences)
    return float(stats.ttest_1samp(np.asarray(differences, float), 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons (Holm 1979); NaN stays and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, running = list(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def verdict(difference: float, adjusted_p: float) -> str:
    """What the seeds show about a method and its control, at 5 % over all comparisons."""
    if math.isnan(adjusted_p):
        return "too few seeds"
    if adjusted_p > 1 - LEVEL:
        return "no evidence"
    return "improves" if difference > 0 else "worse"
