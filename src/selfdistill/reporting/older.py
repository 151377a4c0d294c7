"""Records of before there were analyses: their metrics stood under `test` and `robustness`.

Such packs and imported records stay readable: what they say is put where an analysis of today puts it.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from selfdistill.analyses import cost, exits, members, robustness
from selfdistill.evaluation.exits import exit_names
from selfdistill.reporting.entries import Amount, Count, Entry, Number, Open, Record, Share, Text
from selfdistill.schema import Sha256


class ExitMetrics(Open):
    accuracy: Share
    nll: Amount
    ece: Share
    __pydantic_extra__: dict[str, Number]


class RetrievalMetrics(Open):
    rank1: Share
    rank5: Share
    rank10: Share
    mean_average_precision: Share
    mean_inverse_negative_penalty: Share
    queries: Count
    skipped: Annotated[int, Field(ge=0)]
    __pydantic_extra__: dict[str, Share]


M = TypeVar("M", ExitMetrics, RetrievalMetrics)


class Selection(Open, Generic[M]):
    exits: list[M] = Field(min_length=1)
    ensemble: M | None = None


class LastSelection(Selection[M], Generic[M]):
    members: dict[str, M] = {}


class Test(Open, Generic[M]):
    last: LastSelection[M]
    validation: Selection[M]


class OtherImages(Selection[ExitMetrics]):
    set: Text
    severity: Count | None


class Robustness(Open):
    selection: Literal["last", "validation"]
    pixels_sha256: dict[str, Sha256]
    tests: list[OtherImages] = Field(min_length=1)


class OlderRecord(Record, Generic[M]):
    measures: dict[str, Any] = {}
    test: Test[M]
    robustness: dict[str, Robustness] = {}


class OlderEntry(Entry, Generic[M]):
    record: OlderRecord[M]


def is_older(record: Any) -> bool:
    """Whether a record says what was found in the older form; nothing is known of what it is."""
    return isinstance(record, dict) and "test" in record and "measures" not in record


def older_entry_schema(content: dict[str, Any]) -> type[OlderEntry]:
    from selfdistill.reporting.entries import tests_persons

    return OlderEntry[RetrievalMetrics] if tests_persons(content.get("record")) else OlderEntry[ExitMetrics]


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the older form, which has been checked, in the form of today."""
    record = dict(record)
    test, tested = record.pop("test"), record.pop("robustness", {})
    headline = "retrieval" if "rank1" in test["last"]["exits"][0] else "accuracy"
    names = exit_names(record)
    found: dict[str, dict[str, list]] = {headline: {}, "exits": {}}
    for selection in ("last", "validation"):
        metrics = in_order(test[selection])
        found[headline][selection] = rows_at(names, metrics)
        found["exits"][selection] = exits.rows(record, metrics)
    if others := dict(test["last"].get("members", {})):
        together = others.pop("together", {})
        own = test["last"]["exits"][-1]
        found["members"] = {"last": members.rows({**others, "last": own, "together": together})}
    found["cost"] = {"last": cost.of(record)}
    measures = {name: {"key": "0" * 64, "rows": rows} for name, rows in found.items()}
    probes = {name: older_probe(name, other, names) for name, other in tested.items()}
    return {**record, "measures": measures, **({"probes": probes} if probes else {})}


def in_order(tested: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of every exit and, of several, of all together."""
    return [*tested["exits"], *([tested["ensemble"]] if tested.get("ensemble") else [])]


def rows_at(names: list[str], metrics: list[dict[str, float]]) -> list[dict[str, Any]]:
    further = ["further"] * len(metrics)  # than the run has exits: what checks the rows says so
    return [{"exit": name, **m} for name, m in zip([*names, "ensemble", *further], metrics, strict=False)]


def older_probe(name: str, tested: dict[str, Any], names: list[str]) -> dict[str, Any]:
    rows = [
        {"set": test["set"], "severity": test["severity"], **row}
        for test in tested["tests"]
        for row in rows_at(names, in_order(test))
    ]
    rows += robustness.over_all(rows, names[-1])
    told = {key: tested[key] for key in ("selection", "pixels_sha256")}
    return {"analysis": "robustness", "data": name, **told, "rows": rows}
