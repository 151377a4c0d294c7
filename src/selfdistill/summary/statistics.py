"""Statistics of a few seeds and many test images: intervals, paired differences, families of tests, verdicts.

One procedure for interval, p and equivalence.  A difference of S seeds x n test images varies for three reasons: seeds
(initialisation, order and sample of the training images), test images, and what is left of both together.  Each counts
once: variance of the mean = seeds / S + images / n + rest / (S n), with components from a two-way analysis of variance
without replication (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4), cut at 0.  The quantile is
Cochran's (Biometrics 20, 1964): the mean of those of S - 1 and of n - 1 degrees of freedom, weighted by the mean
squares.  Satterthwaite's degrees of freedom let a test at 0.05 / 12 be wrong 2.4 times too often at 5 seeds, and S - 1
alone makes an interval at 95 % cover 99 % where seeds add little; `benchmarks/coverage.py` measures what this does.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from selfdistill.errors import UserError
from selfdistill.summary import LEVEL

POWER = 0.8
TINY = 1e-200  # below this SciPy's quantiles of t are wrong; such a p counts as 0
FEWEST = 5  # seeds that a verdict needs: with 3 the first of four contrasts would need |t| above 7


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half-width of its t-interval at LEVEL; the half-width is NaN below two values.

    Raises UserError for no values.
    """
    if not (n := len(values)):
        raise UserError("the mean of 0 values is not defined; allowed: at least 1 value")
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.asarray(values, float).std(ddof=1) / math.sqrt(n))


def mean_ratio(pairs: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """The geometric mean of the ratios of pairs of positive numbers, and its t-interval at LEVEL, low and high: those
    of the logarithms.  The interval is NaN below two pairs.

    Raises UserError for no pairs.
    """
    mean, half = mean_interval([math.log(one / other) for one, other in pairs])
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


@dataclass(frozen=True)
class Effect:
    """A mean difference and its standard error, which is NaN below two seeds.

    seeds, images: how many there were, no images where the difference is of whole runs; weight: of the seeds' degrees
    of freedom in a quantile; seed_sd, image_sd, rest_sd: the standard deviation of each component, that of seeds being
    the spread that no further test image would remove.
    """

    difference: float
    error: float
    seeds: int
    images: int
    weight: float
    seed_sd: float
    image_sd: float
    rest_sd: float

    def quantile(self, tail: float) -> float:
        """What a standardised difference exceeds with probability `tail`."""
        of_seeds = stats.t.isf(tail, self.seeds - 1)
        if self.weight == 1:
            return float(of_seeds)
        return float(self.weight * of_seeds + (1 - self.weight) * stats.t.isf(tail, self.images - 1))

    @property
    def p(self) -> float:
        """Two-sided, of no difference.  Without any spread, which equal answers to all images give, it is 1 or 0."""
        if math.isnan(self.error):
            return math.nan
        if self.error == 0 or self.difference == 0:
            return float(self.difference == 0)
        t = abs(self.difference) / self.error
        if self.quantile(TINY) <= t:
            return 0.0
        # in the logarithm of the tail, because p-values of 1e-20 are as common as of 0.2
        return float(
            2 * math.exp(optimize.brentq(lambda x: self.quantile(math.exp(x)) - t, math.log(TINY), math.log(0.5)))
        )

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Of the difference; NaN below two seeds."""
        if math.isnan(self.error):
            return math.nan, math.nan
        half = self.quantile((1 - level) / 2) * self.error
        return self.difference - half, self.difference + half

    def smallest_found(self, level: float, power: float = POWER) -> float:
        """The true difference that a two-sided test at 1 - `level` finds with this power, at this standard error: by
        the noncentral t distribution that has this quantile; NaN below two seeds."""
        if math.isnan(self.error) or self.error == 0:
            return self.error
        critical, few, many = self.quantile((1 - level) / 2), self.seeds - 1, max(self.seeds, self.images, 10**6)
        freedom = few
        if stats.t.isf((1 - level) / 2, few) - critical > 1e-9:
            freedom = optimize.brentq(lambda f: stats.t.isf((1 - level) / 2, f) - critical, few, many)

        def lacking(shift: float) -> float:  # the other tail adds less than 1e-4 where the power is 0.8
            return float(stats.nct.sf(critical, freedom, shift)) - power

        return self.error * float(optimize.brentq(lacking, 0.0, 4 * critical + 20))


def paired_effect(differences: np.ndarray) -> Effect:
    """Of differences S x n, a row a seed and a column a test image, or S x 1, of whole runs: then the spread over seeds
    alone counts, as in a paired t-test.

    Raises UserError for none.
    """
    d = np.asarray(differences, float)
    if d.ndim != 2 or not d.size:
        raise UserError(
            f"differences of shape {d.shape} are not allowed; allowed: seeds x images, at least one of each"
        )
    seeds, images = d.shape
    mean, rows, columns = float(d.mean()), d.mean(axis=1), d.mean(axis=0)
    whole = images == 1
    if seeds < 2:
        return Effect(mean, math.nan, seeds, 0 if whole else images, *[math.nan] * 4)
    if whole:
        sd = float(rows.std(ddof=1))
        return Effect(mean, sd / math.sqrt(seeds), seeds, 0, 1.0, sd, 0.0, 0.0)
    of_seeds = images * float(rows.var(ddof=1))  # mean squares
    of_images = seeds * float(columns.var(ddof=1))
    rest = float(((d - rows[:, None] - columns + mean) ** 2).sum()) / ((seeds - 1) * (images - 1))
    if max(of_seeds, of_images, rest) < 1e-18 * max(1.0, mean**2):  # what rounding leaves of equal numbers
        return Effect(mean, 0.0, seeds, images, 1.0, 0.0, 0.0, 0.0)
    # S n times the variance of the mean: the seeds' part as in a paired t-test over seeds, and what the images add, cut
    # at 0.  Were the seeds' component cut at 0, too, intervals would be too wide where it is small: at 5 seeds and a
    # level of 0.95 they covered in 97.7 % of studies; benchmarks/coverage.py says what these do.
    above_rest = max(0.0, of_images - rest)
    total = of_seeds + above_rest or rest
    return Effect(
        difference=mean,
        error=math.sqrt(total / (seeds * images)),
        seeds=seeds,
        images=images,
        weight=of_seeds / total,
        seed_sd=math.sqrt(max(0.0, of_seeds - rest) / images),
        image_sd=math.sqrt(above_rest / seeds),
        rest_sd=math.sqrt(rest),
    )


def rising(p_values: Sequence[float]) -> list[int]:
    """The places of the p-values from the smallest to the largest; NaN has none."""
    return sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons (Holm 1979); NaN stays and does not count."""
    order = rising(p_values)
    adjusted, running = list(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The level of each test's interval, so that it leaves out 0 exactly where Holm's procedure rejects; NaN for NaN.

    The k-th smallest p is held against (1 - LEVEL) / (m - k + 1); all that come after the first that is not below its
    bound share the level of that one.
    """
    order = rising(p_values)
    levels, going_on, bound = [math.nan] * len(p_values), True, 0.0
    for rank, i in enumerate(order):
        if going_on:
            bound = (1 - LEVEL) / (len(order) - rank)
            going_on = p_values[i] <= bound
        levels[i] = 1 - bound
    return levels


@dataclass(frozen=True)
class Finding:
    """What a family of tests says of one effect.  level: of the interval low to high that the verdict used."""

    verdict: str
    p: float
    p_holm: float
    level: float
    low: float
    high: float


TOO_FEW = "too few seeds"


def family(effects: Sequence[Effect], margins: Sequence[float]) -> list[Finding]:
    """The verdict on each effect of one Holm family: improves or worse where its interval leaves out 0, equivalent
    where it lies within its margin on both sides, undecided otherwise; none below 5 seeds, which does not count.

    An interval within the margin is two one-sided tests (Schuirmann 1987), each at half the error of the interval.
    """
    p_values = [effect.p if effect.seeds >= FEWEST else math.nan for effect in effects]
    adjusted, levels = holm(p_values), holm_levels(p_values)
    findings = []
    for effect, margin, p, p_holm, level in zip(effects, margins, p_values, adjusted, levels, strict=True):
        if math.isnan(p):
            findings.append(Finding(TOO_FEW, *[math.nan] * 5))
            continue
        low, high = effect.interval(level)
        verdict = "undecided"
        if p_holm <= 1 - LEVEL:
            verdict = "improves" if effect.difference > 0 else "worse"
        elif -margin < low and high < margin:
            verdict = "equivalent"
        findings.append(Finding(verdict, p, p_holm, level, low, high))
    return findings


def probability_of_improvement(values: Sequence[float], others: Sequence[float]) -> float:
    """That a run of the one is better than a run of the other, ties counting half (Agarwal et al. 2021)."""
    a, b = np.asarray(values, float)[:, None], np.asarray(others, float)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def over_networks(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test that the differences of several networks or data sets, one each, lie around 0
    (Demsar 2006); NaN for fewer than 5, of which none could be below 0.05."""
    if len(differences) < 5:
        return math.nan
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def page_trend(values: np.ndarray) -> tuple[float, bool]:
    """Page's trend test (J. Am. Stat. Assoc. 58, 1963) of S seeds x k >= 3 ordered treatments: the two-sided p of no
    trend, twice the smaller of both directions', and whether values rise.  NaN below 5 seeds, which get no verdict.

    Raises UserError for fewer than 3 treatments.
    """
    data = np.asarray(values, float)
    if data.ndim != 2 or data.shape[1] < 3:
        raise UserError(f"values of shape {data.shape} are not allowed; allowed: seeds x 3 or more treatments")
    if len(data) < FEWEST:
        return math.nan, bool(data[:, -1].mean() > data[:, 0].mean())
    rising = float(stats.page_trend_test(data).pvalue)
    falling = float(stats.page_trend_test(-data).pvalue)
    return min(1.0, 2 * min(rising, falling)), rising < falling
