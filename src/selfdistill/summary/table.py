"""Tables of analyses, made from what each says of its numbers: one row a model, variant and keys of a row.

Means over seeds with half-widths of t-intervals; numbers of unit % are shares times 100.  The columns of the
leading estimated number are `NAME` and `half_width`, those of the others `NAME` and `NAME_half_width`.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from selfdistill import analyses, methods
from selfdistill.summary.grouping import by_variant, headline_of, headline_row, named, rows_of
from selfdistill.summary.statistics import Effect, mean_interval, paired_effect

Runs = dict[int, dict]  # records by seed
Effects = Callable[[Runs, Runs], Effect | None]  # of a variant's runs and the control's
Found = dict[tuple, dict[int, dict]]  # rows of a variant by their keys, then by seed


def table_of(
    analysis: str,
    records: list[dict],
    selection: str,
    control: str,
    every: bool = False,
    effects: Effects | None = None,
) -> pd.DataFrame:
    """every: all rows and numbers, not those alone that readers see.  effects: the differences of the leading judged
    number, where more is known of the runs than their rows say."""
    about = analyses.about(analysis)
    numbers = numbers_in(analysis, records, selection, every)
    keys = key_columns(analysis, every)
    rows = []
    for _, same in groupby(by_variant(records), key=lambda group: group[0]):
        group = [(variant, runs, found_of(analysis, runs, selection, every)) for _, variant, runs in same]
        reference = next(((runs, found) for variant, runs, found in group if variant == control), ([], {}))
        for variant, runs, found in group:
            for values, of_seeds in found.items():
                row = {"model": runs[0]["model"], **named(runs[0])}
                if judged(numbers):
                    row["group"] = methods.about(runs[0]["method"])["group"]
                row |= dict(zip(keys, values, strict=True))
                row |= columns_of(numbers, list(of_seeds.values()))
                if "seeds" in about["needs"] and list(of_seeds) == [min(by_seed(runs))]:  # of all seeds, told once
                    row["n"] = sum(analysis in record["measures"] for record in runs)
                if not every:
                    theirs = reference[1].get(values, {})
                    known = effects and partial(effects, by_seed(runs), by_seed(reference[0]))
                    row |= compared(numbers, of_seeds, theirs, variant == control, known)
                if about.get("beside"):
                    row |= beside(runs, list(of_seeds), selection, numbers)
                rows.append(row)
    table = pd.DataFrame(rows)
    for key in keys:  # a whole number that some rows lack
        if key in table and pd.api.types.is_float_dtype(table[key]):
            table[key] = table[key].astype("Int64")
    return with_ratios(numbers, table, control)


def key_columns(analysis: str, every: bool = False) -> list[str]:
    keys = analyses.about(analysis)["keys"] if every else analyses.shown_keys(analysis)
    return [*(["probe"] if analyses.is_probe(analysis) else []), *keys]


def numbers_in(analysis: str, records: list[dict], selection: str, every: bool) -> dict[str, dict[str, Any]]:
    """The numbers that any row holds, or that are made from them, in the order of ABOUT."""
    there = {key for r in records for row in rows_of(r, analysis, selection) for key in row}
    return {
        key: number
        for key, number in analyses.about(analysis)["numbers"].items()
        if (every or number["shown"] != "runs") and (number["relative_to_control"] or key) in there
    }


def judged(numbers: dict[str, dict]) -> list[str]:
    return [key for key, number in numbers.items() if number["judged"]]


def leading(numbers: dict[str, dict]) -> str | None:
    """The first number that is estimated."""
    return next((key for key, number in numbers.items() if not number["exact"]), None)


def found_of(analysis: str, runs: list[dict], selection: str, every: bool) -> Found:
    keys, found = key_columns(analysis, every), {}
    for record in runs:
        for row in rows_of(record, analysis, selection):
            if every or analyses.shows(analysis, row):
                found.setdefault(tuple(row[key] for key in keys), {})[record["seed"]] = row
    return found


def by_seed(runs: list[dict]) -> Runs:
    return {record["seed"]: record for record in runs}


def scaled(number: dict[str, Any], value: float) -> float:
    return 100 * value if number["unit"] == "%" else value


def prefixed(key: str, numbers: dict[str, dict], word: str) -> str:
    """The name of a column beside a number's."""
    return word if key == leading(numbers) else f"{key}_{word}"


def columns_of(numbers: dict[str, dict], rows: list[dict]) -> dict[str, Any]:
    """Exact numbers, of one run as of all; how many runs there are; means and half-widths of the others, NaN where some
    run does not define the number."""
    columns = {
        key: math.nan if rows[0].get(key) is None else scaled(number, rows[0][key])
        for key, number in numbers.items()
        if number["exact"] and not number["relative_to_control"]
    }
    if leading(numbers) is None:
        return columns
    columns["n"] = len(rows)
    for key, number in numbers.items():
        if not number["exact"]:
            known = [scaled(number, row[key]) for row in rows if row.get(key) is not None]
            mean, half_width = mean_interval(known) if len(known) == len(rows) else (math.nan, math.nan)
            columns |= {key: mean, prefixed(key, numbers, "half_width"): half_width}
    return columns


def compared(
    numbers: dict[str, dict],
    of_seeds: dict[int, dict],
    control: dict[int, dict],
    is_control: bool,
    known: Callable[[], Effect | None] | None,
) -> dict[str, Any]:
    """Columns of each judged number: its standard deviation, its difference to the control, and that one's half-width;
    and whether the row is the control's."""
    columns: dict[str, Any] = {}
    for key in judged(numbers):
        values = {s: scaled(numbers[key], row[key]) for s, row in of_seeds.items() if row.get(key) is not None}
        theirs = {s: scaled(numbers[key], row[key]) for s, row in control.items() if row.get(key) is not None}
        pairs = [[values[seed] - theirs[seed]] for seed in values if seed in theirs]
        effect = known() if known and key == leading(numbers) else paired_effect(np.array(pairs)) if pairs else None
        difference, half_width = (0.0 if effect else math.nan), math.nan
        if effect is not None and not is_control:
            difference, half_width = effect.difference, effect.difference - effect.interval()[0]
        columns[prefixed(key, numbers, "sd")] = pd.Series(list(values.values()), dtype=float).std(ddof=1)
        columns[prefixed(key, numbers, "difference")] = difference
        columns[prefixed(key, numbers, "difference_half_width")] = half_width
    return {**columns, "control": is_control} if columns else {}


def beside(runs: list[dict], seeds: list[int], selection: str, numbers: dict[str, dict]) -> dict[str, float]:
    """The mean of the study's headline number over the same runs; `own_test_NAME` where NAME is the analysis' own."""
    name = headline_of(runs[0])
    key = analyses.about(name)["headline"]
    number = analyses.about(name)["numbers"][key]
    values = [scaled(number, headline_row(r, selection)[key]) for r in runs if r["seed"] in seeds]
    return {f"own_test_{key}" if key in numbers else key: mean_interval(values)[0]}


def with_ratios(numbers: dict[str, dict], table: pd.DataFrame, control: str) -> pd.DataFrame:
    """Each number that is the ratio of another to the control's, before the numbers that follow it."""
    order = list(numbers)
    for key in order if len(table) else ():
        if (of := numbers[key]["relative_to_control"]) in table:
            theirs = table[table.variant == control].set_index("model")[of].replace(0, math.nan)  # given weights
            before = next(iter(c for c in reversed(order[: order.index(key)]) if c in table), of)
            table.insert(table.columns.get_loc(before) + 1, key, table[of] / table.model.map(theirs))
    return table
