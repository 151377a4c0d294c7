"""Numbers of runs that claims rest on, beside the contrasts that a study declares: `results/tables/claims.csv`.

Made from records, which are not in Git, so that the ledger can be made from what is.
"""

from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from selfdistill import analyses
from selfdistill.claims.declared import Claims, Paired, Trend, Values, asked_of
from selfdistill.errors import UserError
from selfdistill.summary import LEVEL
from selfdistill.summary.grouping import rows_of
from selfdistill.summary.statistics import TOO_FEW, family, holm, page_trend, paired_effect
from selfdistill.summary.table import key_columns, scaled

Of = dict[str, dict[int, dict]]  # records of a network by variant and seed
Cells = dict[object, dict[int, float]]  # a number by a key's value and by seed
# what a family calls better is only higher where a number may be better when it is lower
WORDS = {"improves": "higher", "worse": "lower"}


def evidence_table(claims: Claims, study: str, records: list[dict], selection: str) -> pd.DataFrame:
    """One row a test of a claim in this study, network and value of the key along which it compares; empty where the
    study tests none, or where no run has the number.

    difference: mean over seeds in the number's unit (points for shares), with its interval at the level that the
    verdict used; of a trend, what the last value has more than the first.
    """
    by_model = {model: variants_of(list(runs)) for model, runs in groupby(records, key=lambda record: record["model"])}
    rows: list[dict[str, Any]] = []
    for claim, place, asked in asked_of(claims, study):
        form = asked.paired or asked.trend
        if form is None or form.analysis not in analyses.names():
            continue
        spec = analyses.about(form.analysis)["numbers"].get(form.number)
        if spec is None:
            continue
        found = paired_rows(asked.paired, by_model, selection) if asked.paired else []
        found = trend_rows(asked.trend, by_model, selection) if asked.trend else found
        unit = "points" if spec["unit"] == "%" else spec["unit"]
        rows += [{"claim": claim, "test": place, **row, "unit": unit} for row in found]
    return pd.DataFrame(rows)


def variants_of(records: list[dict]) -> Of:
    found: Of = {}
    for record in records:
        found.setdefault(record["variant"], {})[record["seed"]] = record
    return found


def cells_of(
    runs: dict[int, dict], analysis: str, number: str, selection: str, where: Values, key: str | None
) -> Cells:
    """A number of some runs, by the value of a key (None without one) and by seed; shares times 100.  Rows that the
    table leaves out are left out here, too, but where `where` or `key` names what tells them apart.

    Raises UserError where a run has several such rows.
    """
    spec = analyses.about(analysis)["numbers"][number]
    hidden = {k for k in analyses.about(analysis).get("shown", {}) if k not in where and k != key}
    found: Cells = {}
    for seed, record in runs.items():
        for row in rows_of(record, analysis, selection):
            wanted = all(row.get(name) == value for name, value in where.items())
            if wanted and row.get(number) is not None and (not hidden or analyses.shows(analysis, row)):
                cell = found.setdefault(row.get(key) if key else None, {})
                if seed in cell:
                    keys = ", ".join(key_columns(analysis, every=True))
                    raise UserError(
                        f"claims.yaml: {analysis}: {number}: several rows of a run are not allowed; allowed: one, "
                        f"which `where`, `each` or `along` tells apart by {keys}"
                    )
                cell[seed] = scaled(spec, row[number])
    return found


def paired_rows(form: Paired, by_model: dict[str, Of], selection: str) -> list[dict[str, Any]]:
    """One Holm family over networks and values of the key."""
    rows, effects = [], []
    for model, runs in by_model.items():
        one, other = (
            cells_of(runs.get(variant, {}), form.analysis, form.number, selection, where, form.each)
            for variant, where in (
                (form.of, form.where),
                (form.against, form.where if form.where_against is None else form.where_against),
            )
        )
        for value in (value for value in one if value in other):
            seeds = [seed for seed in one[value] if seed in other[value]]
            if not seeds:
                continue
            pairs = np.array([[one[value][seed] - other[value][seed]] for seed in seeds])
            effects.append(paired_effect(pairs))
            titles = {
                key: next(iter(runs[variant].values()))["title"]
                for key, variant in (("title", form.of), ("against_title", form.against))
            }
            pair = {"of": form.of, "against": form.against, **titles}
            rows.append({"model": model, **pair, "what": described(form, value)})
    findings = family(effects, [0.0] * len(effects))
    return [
        {
            **row,
            "n": effect.seeds,
            "difference": effect.difference,
            "low": finding.low,
            "high": finding.high,
            "level": finding.level,
            "p": finding.p,
            "p_holm": finding.p_holm,
            "verdict": WORDS.get(finding.verdict, finding.verdict),
        }
        for row, effect, finding in zip(rows, effects, findings, strict=True)
    ]


def described(form: Paired, value: object) -> str:
    """Which rows are compared, in words; value: of the key `each`, None for all of its values."""
    parts = [row_words(form.where)] if form.where else []
    if form.where_against is not None:
        parts.append(f"against {row_words(form.where_against)}")
    if form.each and value is not None:
        parts.append(f"{form.each} {value}")
    return ", ".join(parts)


def row_words(where: Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items())


def trend_rows(form: Trend, by_model: dict[str, Of], selection: str) -> list[dict[str, Any]]:
    """One Holm family over networks."""
    rows: list[dict[str, Any]] = []
    for model, runs in by_model.items():
        cells = cells_of(runs.get(form.of, {}), form.analysis, form.number, selection, form.where, form.along)
        columns = [cells.get(value, {}) for value in form.values]
        seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
        if not seeds:
            continue
        values = np.array([[column[seed] for column in columns] for seed in seeds])
        p, rising = page_trend(values)
        rows.append(
            {
                "model": model,
                "of": form.of,
                "against": "",
                "title": runs[form.of][seeds[0]]["title"],
                "against_title": "",
                "what": f"{form.along} {form.values[0]} to {form.values[-1]}",
                "n": len(seeds),
                "difference": float((values[:, -1] - values[:, 0]).mean()),
                "low": np.nan,
                "high": np.nan,
                "level": np.nan,
                "p": p,
                "rising": rising,
            }
        )
    for row, p_holm in zip(rows, holm([row["p"] for row in rows]), strict=True):
        rising = row.pop("rising")
        found = p_holm <= 1 - LEVEL
        verdict = TOO_FEW if np.isnan(row["p"]) else ("higher" if rising else "lower") if found else "undecided"
        row |= {"p_holm": p_holm, "verdict": verdict}
    return rows
