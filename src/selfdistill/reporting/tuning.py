"""Tables of an equal search: what the winners' values are, and what a search of so many trials finds on average."""

import math
from statistics import median
from typing import Any

import pandas as pd

from selfdistill.summary.grouping import by_variant
from selfdistill.summary.statistics import mean_interval


def winners_table(records: list[dict]) -> pd.DataFrame:
    """One row a model, tuned variant and searched value: as published, the winners' median and range, and how many
    times the published one the median is; how many of the searches were won by the values as published.

    records: of tuned variants.
    """
    rows: list[dict[str, Any]] = []
    for model, variant, group in by_variant(records):
        searches = [r["tuning"] for r in group]
        kept = sum(s["winner"] == 0 for s in searches)
        names = dict.fromkeys(
            (block, key) for s in searches for t in s["results"] for block in ("recipe", "hyper") for key in t[block]
        )
        for block, key in names:
            published = searches[0]["published"][block][key]
            won = [s["results"][s["winner"]][block].get(key, published) for s in searches]
            row = {"model": model, "variant": variant, "method": group[0]["method"], "title": group[0]["title"]}
            row |= {"value": key, "published": written(published), "n": len(won), "won_by_published": kept}
            if all(map(is_number, won)):
                middle = median(won)
                row |= {"median": written(middle), "range": f"{written(min(won))} to {written(max(won))}"}
                row["times_published"] = middle / published if is_number(published) and published else math.nan
            else:
                row |= {
                    "median": None,
                    "range": ", ".join(dict.fromkeys(map(written, won))),
                    "times_published": math.nan,
                }
            rows.append(row)
    return pd.DataFrame(rows)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_table(records: list[dict]) -> pd.DataFrame:
    """One row a model, tuned variant and number of trials k: the validation accuracy that the best of k trials is
    expected to have (Dodge et al. 2019, equation 7), mean over searches with its half-width, in %.

    A trial that diverged counts as one of accuracy 0.
    """
    rows = []
    for model, variant, group in by_variant(records):
        searches = [[t["validation_accuracy"] or 0.0 for t in r["tuning"]["results"]] for r in group]
        for k in range(1, min(map(len, searches)) + 1):
            mean, half_width = mean_interval([100 * expected_best(search, k) for search in searches])
            row = {"model": model, "variant": variant, "method": group[0]["method"], "title": group[0]["title"]}
            rows.append({**row, "trials": k, "n": len(searches), "expected_best": mean, "half_width": half_width})
    return pd.DataFrame(rows)


def expected_best(values: list[float], k: int) -> float:
    """The mean of the largest of k values that are drawn, with replacement, from these."""
    n, rising = len(values), sorted(values)
    return sum(value * ((i / n) ** k - ((i - 1) / n) ** k) for i, value in enumerate(rising, start=1))
