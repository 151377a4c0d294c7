"""Rows of analyses in the records of runs, and runs grouped by network and variant."""

from itertools import groupby
from typing import Any

from selfdistill import analyses


def by_variant(records: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """(model, variant, its records), in the records' order."""
    groups = groupby(records, key=lambda r: (r["model"], r["variant"]))
    return [(model, variant, list(group)) for (model, variant), group in groups]


def named(record: dict) -> dict[str, str]:
    """The columns that identify a row."""
    return {key: record[key] for key in ("variant", "method", "title")}


def rows_of(record: dict, analysis: str, selection: str) -> list[dict[str, Any]]:
    """What an analysis found of a run, for the weights of a selection; of probes, with `probe`, the study's name."""
    if analyses.is_probe(analysis):
        tested = {name: found for name, found in record.get("probes", {}).items() if found["analysis"] == analysis}
        return [
            {"probe": name, **row}
            for name, found in tested.items()
            if found["selection"] == selection
            for row in found["rows"]
        ]
    rows = record["measures"].get(analysis, {}).get("rows", {})
    return rows.get(selection if analyses.of_selection(analysis) else "last", [])


def headline_of(record: dict) -> str:
    """The analysis whose number stands for a run.  ValueError for a record without any."""
    for name in analyses.headlines():
        if name in record["measures"]:
            return name
    raise ValueError(f"no number that could stand for a run; allowed: one of {', '.join(analyses.headlines())}")


def headline_in(tables: Any) -> str:
    """The same, where there is a table of each analysis by name."""
    return next(name for name in analyses.headlines() if name in tables)


def headline_row(record: dict, selection: str) -> dict[str, Any]:
    """The row that stands for a run: of the deepest exit."""
    name = headline_of(record)
    return next(row for row in rows_of(record, name, selection) if analyses.shows(name, row))


def at_exits(record: dict, selection: str) -> list[float]:
    """The number that stands for a run, at each of its exits, shallow to deep, and, of several, of all together."""
    name = headline_of(record)
    key = analyses.about(name)["headline"]
    return [row[key] for row in rows_of(record, name, selection)]
