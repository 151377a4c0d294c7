"""The comparisons that a study declares before it runs: one test each and network, all of them in one family.

Everything else that a study compares is exploratory: it has an interval, and no verdict.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from selfdistill.config import Contrast, Study
from selfdistill.errors import UserError
from selfdistill.reporting import per_image
from selfdistill.summary import LEVEL
from selfdistill.summary.grouping import at_exits
from selfdistill.summary.statistics import (
    Effect,
    family,
    mean_interval,
    over_networks,
    paired_effect,
    probability_of_improvement,
)

# of a record: exits, and their ensemble where it is known, x images, 0 or 1; None where nothing is known per image
Right = Callable[[dict], np.ndarray | None]
BARE = "nothing known per image"
ABSENT = "not in this study"


def reader(study: Study) -> Right:
    """What runs say of each image, each read once."""
    known: dict[tuple, np.ndarray | None] = {}

    def right(record: dict) -> np.ndarray | None:
        cell = record["model"], record["variant"], record["seed"]
        if cell not in known:
            try:
                known[cell] = per_image.right(study, record, study.selection)
            except per_image.PerImageError:
                known[cell] = None
        return known[cell]

    return right


def effect_of(
    runs: dict[int, dict], others: dict[int, dict], right: Right, selection: str, exit: int | str = "last"
) -> Effect | None:
    """The difference of two variants in points, paired by seed and test image; runs, others: records by seed; exit: as
    of a contrast.  A run of which nothing is known per image makes the spread over seeds count alone.  None where no
    seed is in both."""
    seeds = [seed for seed in runs if seed in others]
    if not seeds:
        return None
    places = [[exit_at(of[seed], exit) for of in (runs, others)] for seed in seeds]
    rows = []
    for seed, (place, other_place) in zip(seeds, places, strict=True):
        one, other = right(runs[seed]), right(others[seed])
        if one is None or other is None or one.shape[1] != other.shape[1]:
            continue
        if place < len(one) and other_place < len(other):
            rows.append(one[place].astype(float) - other[other_place])
    if len(rows) == len(seeds) and len({len(row) for row in rows}) == 1:
        return paired_effect(100 * np.stack(rows))
    values = [
        [at_exits(of[seed], selection)[i] for of, i in zip((runs, others), place, strict=True)]
        for seed, place in zip(seeds, places, strict=True)
    ]
    return paired_effect(np.array([[100 * (a - b)] for a, b in values]))


def exit_at(record: dict, exit: int | str) -> int:
    """The place among a run's exits of the one after a section, or, after them, of their ensemble; of a network without
    it, and for `last`, the deepest."""
    exits = len(record["cost"]["inference_macs"])
    if exit == "ensemble":
        return exits if exits > 1 else exits - 1
    place = exits - 1 if exit == "last" else int(exit) - 1 - (record["sections"] - exits)
    return place if 0 <= place < exits else exits - 1


def contrast_table(study: Study, records: list[dict], right: Right) -> pd.DataFrame:
    """One row a declared contrast and network: the difference in points, the interval at the level that the verdict
    used, p and p adjusted over the whole family, margin, the difference that the study finds with 80 % power, each
    component's standard deviation, the plain t-interval over seeds, and the verdict with its reason.

    Raises UserError for an exit that the network does not have.
    """
    runs, rows, effects = by_variant_and_seed(records), [], []
    for model in study.models:
        for name, contrast in study.contrasts.items():
            of, against = (runs[model, variant] for variant in contrast.pair)
            refuse_unknown_exit(name, contrast, model, of)
            effect = effect_of(of, against, right, study.selection, contrast.exit)
            rows.append({"model": model, "contrast": name, **described(study, contrast), **numbers(effect)})
            effects.append(effect)
    if not rows:
        return pd.DataFrame()
    margins = [study.contrasts[row["contrast"]].margin or study.margin for row in rows]
    untested = Effect(math.nan, math.nan, 0, 0, *[math.nan] * 4)  # gets no verdict
    findings = family([effect if effect and effect.images else untested for effect in effects], margins)
    # what the first test of the family is held against
    first = 1 - (1 - LEVEL) / max(1, sum(not math.isnan(finding.p) for finding in findings))
    for row, effect, margin, finding in zip(rows, effects, margins, findings, strict=True):
        row |= {"margin": margin, **asdict(finding)}
        if not {row["of"], row["against"]} <= set(study.all_variants):
            row["verdict"] = ABSENT
        if effect and not effect.images and effect.seeds > 1:
            row["verdict"] = BARE
        row["smallest_found"] = math.nan if effect is None or math.isnan(finding.p) else effect.smallest_found(first)
    return pd.DataFrame(rows)


def by_variant_and_seed(records: list[dict]) -> dict[tuple[str, str], dict[int, dict]]:
    """Of each model and variant, its records by seed; none of one that has not run."""
    runs: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for record in records:
        runs[record["model"], record["variant"]][record["seed"]] = record
    return runs


def described(study: Study, contrast: Contrast) -> dict[str, Any]:
    of, against = contrast.pair
    titles = {"title": study.variant(of).title, "against_title": study.variant(against).title}
    return {"of": of, "against": against, **titles, "exit": str(contrast.exit)}


def numbers(effect: Effect | None) -> dict[str, Any]:
    """Of an effect before any verdict; the plain interval over seeds has the same centre."""
    if effect is None:
        return {"n": 0, "images": 0, "difference": math.nan}
    low, _ = effect.interval(LEVEL)
    return {
        "n": effect.seeds,
        "images": effect.images,
        "difference": effect.difference,
        "half_width": effect.difference - low,
        "standard_error": effect.error,
        "seed_sd": effect.seed_sd,
        "image_sd": effect.image_sd,
        "rest_sd": effect.rest_sd,
    }


def refuse_unknown_exit(name: str, contrast: Contrast, model: str, runs: dict[int, dict]) -> None:
    for record in runs.values():
        sections, exits = record["sections"], len(record["cost"]["inference_macs"])
        if contrast.exit == "ensemble" and exits == 1:
            raise UserError(
                f"params.yaml: contrasts.{name}.exit: ensemble is not allowed; {contrast.of} of {model} has one exit"
            )
        if isinstance(contrast.exit, int) and not sections - exits < contrast.exit <= sections:
            raise UserError(
                f"params.yaml: contrasts.{name}.exit: {contrast.exit} is not allowed; {contrast.of} of {model} has "
                f"exits {sections - exits + 1} to {sections}"
            )


def network_table(study: Study, contrasts: pd.DataFrame, records: list[dict]) -> pd.DataFrame:
    """One row a contrast of a study of several networks: its mean difference, Wilcoxon's p over the networks, and the
    probability that a run of the one is better than a run of the other, mean over networks."""
    if contrasts.empty or contrasts.model.nunique() < 2:
        return pd.DataFrame()
    runs, rows = by_variant_and_seed(records), []
    for name, group in contrasts.dropna(subset="difference").groupby("contrast", sort=False):
        contrast, better = study.contrasts[name], []
        for model in group.model:
            values = [
                [at_exits(r, study.selection)[exit_at(r, contrast.exit)] for r in runs[model, variant].values()]
                for variant in contrast.pair
            ]
            better.append(probability_of_improvement(*values))
        mean, _ = mean_interval(group.difference.tolist())
        rows.append(
            {
                "contrast": name,
                "title": group.title.iloc[0],
                "against_title": group.against_title.iloc[0],
                "networks": len(group),
                "difference": mean,
                "p_wilcoxon": over_networks(group.difference.tolist()),
                "probability_of_improvement": mean_interval(better)[0],
            }
        )
    return pd.DataFrame(rows)
