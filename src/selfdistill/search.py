"""The search of hyper-parameters: the same number of trials for every variant, in spaces that name no data set.

A method's card says beside a hyper-parameter where it is searched:

    search: {low: 1, high: 20, scale: log}                   a range; scale is log or linear
    search: {low: 1, high: 100, scale: log, times: {alpha: 1, temperature: 2}}
                                                             the range of the product, weight * alpha * temperature^2
    search: {low: 0.01, high: 0.5, scale: log, share: hint}  the range of the share that the term `hint`, which this
                                                             weight multiplies, has in the loss of the first step
    search: {value: batchmean}                               set in every trial but the first

Learning rate and weight decay are searched for every variant, the control included.  Trial 0 has the values as
published.  Trial i + 1 takes the i-th of scrambled Sobol points (Owen 1998): a pure function of data set, network,
variant, seed and i, so that trials may run in any order, and more of them leave the first ones as they are.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from selfdistill import methods
from selfdistill.seeds import derived_seed

TUNED = "-tuned"  # what the name of a variant of tuned values ends in
COMMON: dict[str, dict[str, dict[str, Any]]] = {  # of the recipe, by its optimiser
    "sgd": {
        "learning_rate": {"low": 0.02, "high": 0.5, "scale": "log"},
        "weight_decay": {"low": 1e-4, "high": 2e-3, "scale": "log"},
    },
    "adamw": {
        "learning_rate": {"low": 2e-4, "high": 1e-2, "scale": "log"},
        "weight_decay": {"low": 1e-3, "high": 0.5, "scale": "log"},
    },
}
DIGITS = 4  # significant ones of a searched value: libraries differ in the last of a float
Spaces = dict[str, dict[str, Any]]
# how often the other terms of the first step's loss, for these hyper-parameters, hold what a term is at weight 1
Ratio = Callable[[dict[str, Any], str, str], float]


def untuned(variant: str) -> str | None:
    """The variant whose values were tuned, by the name of the tuned one; None for any other."""
    return variant.removesuffix(TUNED) if variant.endswith(TUNED) else None


def spaces_of(method: str) -> Spaces:
    """Where a method's own hyper-parameters are searched, by name; nothing for those that stay as they are."""
    return {key: spec["search"] for key, spec in methods.about(method)["hyper"].items() if spec.get("search")}


def sobol_point(dimensions: int, seed: int, i: int) -> list[float]:
    """The i-th of scrambled Sobol points, numbers from 0 to below 1."""
    import numpy as np  # these take a second to load, and a check needs neither
    from scipy.stats import qmc

    points = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    return points.random_base2(i.bit_length())[i].tolist()  # a power of two of them, for which they are balanced


def trial_values(
    common: Spaces,
    spaces: Spaces,
    published: dict[str, Any],
    bounds: dict[str, dict],
    purpose: str,
    seed: int,
    trial: int,
    ratio: Ratio,
) -> tuple[dict[str, Any], dict[str, float]]:
    """(hyper-parameters, values of the recipe) of a trial; nothing of the recipe for trial 0, which is as published.

    common, spaces: what is searched of the recipe, and of the method; published: the variant's hyper-parameters;
    bounds: what each may be, as `ABOUT` has it; purpose: which search this is, in words that no other has; seed: of
    the replicate.
    """
    if trial == 0:
        return dict(published), {}
    hyper = {**published, **{key: space["value"] for key, space in spaces.items() if "value" in space}}
    searched = {key: space for key, space in spaces.items() if "value" not in space}
    dimensions = {**common, **searched}
    drawn = sobol_point(len(dimensions), derived_seed(seed, f"search/{purpose}"), trial - 1)
    found = {key: within(space, u) for (key, space), u in zip(dimensions.items(), drawn, strict=True)}
    for key in sorted(searched, key=lambda key: ("times" in searched[key]) + 2 * ("share" in searched[key])):
        space, value = searched[key], found[key]
        if "share" in space:
            value = value / (1 - value) * ratio(hyper, key, space["share"])
        for other, power in space.get("times", {}).items():
            value /= hyper[other] ** power
        hyper[key] = allowed(value, bounds[key])
    return hyper, {key: rounded(found[key]) for key in common}


def within(space: dict[str, Any], u: float) -> float:
    """Where in a range a number from 0 to 1 falls."""
    low, high = space["low"], space["high"]
    if space["scale"] == "linear":
        return low + u * (high - low)
    return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))


def allowed(value: float, bounds: dict[str, Any]) -> float:
    """The nearest value that a hyper-parameter may have."""
    low, high = bounds["allowed"]
    whole = isinstance(low, int) and isinstance(high, int)
    return min(max(round(value) if whole else rounded(value), low), high)


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def winner(losses: Iterable[float | None]) -> int | None:
    """The trial of the lowest validation loss, the first of equal ones; None for one that diverged, and where all
    did."""
    finite = [(loss, i) for i, loss in enumerate(losses) if loss is not None]
    return min(finite)[1] if finite else None
