"""What a run's record says, and an entry of a packed file: a record, its host, and perhaps its images."""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from selfdistill import analyses
from selfdistill.reporting import per_image
from selfdistill.schema import Name, Sha256, validate

SELECTIONS = ("last", "validation")
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Open(BaseModel):
    """What must be there; a newer version may write more."""

    model_config = ConfigDict(extra="allow", strict=True)


def row_schema(name: str) -> type[BaseModel]:
    """Of a row of an analysis, from what it says of its keys and numbers."""
    about = analyses.about(name)
    fields: dict[str, Any] = {key: (Text | int | None, ...) for key in about["keys"]}
    for key, number in about["numbers"].items():
        fields[key] = ((Share if number["unit"] == "%" else Number) | None, None)
    return create_model(f"row_of_{name}", __base__=Open, **fields)


R = TypeVar("R", bound=BaseModel)


class Measured(Open, Generic[R]):
    """What an analysis found of a run: its rows, by the selection of weights that they are of."""

    key: Sha256
    rows: dict[Literal["last", "validation"], list[R]]


class Probed(Open):
    """What a probe found of a run with the weights that its study selects."""

    analysis: Name
    data: Name
    selection: Literal["last", "validation"]
    settings: dict[str, Any] | None = None  # None of what is older than this key
    pixels_sha256: dict[str, Sha256]
    rows: list[dict[str, Any]]


class ProbedHere(Probed):
    """The same, as `probe` wrote it of a run of this checkout."""

    weights_sha256: Sha256


class History(Open):
    epoch: list[Annotated[int, Field(ge=0)]]  # 0: of given weights, which nobody trained here
    training_accuracy: list[Share]
    validation_accuracy: list[Share]
    __pydantic_extra__: dict[str, list[Number | None]]  # None where a phase has no such term


class DatasetFacts(Open):
    name: Text
    classes: list[str] = Field(min_length=2)
    channels: Count
    size: list[Count] = Field(min_length=2, max_length=2)
    pixels_sha256: dict[str, Sha256]


class SplitFacts(Open):
    split: Literal["per_seed", "fixed"]
    training: Count
    validation: Count
    training_rows_sha256: Sha256
    validation_rows_sha256: Sha256


class Network(Open):
    name: Text


class Cost(Open):
    parameters: Annotated[int, Field(ge=0)]  # 0: of given weights, of which none were trained
    training_flops: Amount
    teacher_training_flops: Amount
    inference_macs: list[Amount] = Field(min_length=1)
    ensemble_macs: Amount


class Trial(Open):
    hyper: dict[str, Any]
    recipe: dict[str, Any]
    validation_nll: Amount | None  # None for one that diverged
    validation_accuracy: Share | None


class Search(Open):
    trials: Count
    epochs: Count
    published: dict[str, dict[str, Any]]
    results: list[Trial] = Field(min_length=1)
    winner: Annotated[int, Field(ge=0)]
    flops: Amount
    teacher_flops: Amount


class Record(Open):
    protocol: Count
    model: Text
    variant: Text
    method: Text
    seed: int
    teacher: str | None
    teacher_model: str | None = None
    network: Network
    sections: Count
    dataset: DatasetFacts
    split: SplitFacts
    recipe: dict[str, Any]
    hyper: dict[str, Any]
    code_sha256: Sha256
    weights_sha256: Sha256
    validation_best_sha256: Sha256
    validation_best_epoch: Annotated[int, Field(ge=0)]
    members: dict[str, Sha256] = {}
    kept: dict[str, Sha256] = {}
    cost: Cost
    measures: dict[str, Any]
    probes: dict[Name, Probed] = {}
    history: History
    tuning: Search | None = None  # of a variant of tuned values


class Host(Open):
    weights_sha256: Sha256
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    seconds: Amount
    peak_memory_mb: Amount
    peak_memory_of: Literal["run", "process"] = "process"  # what a file that does not say was measured of
    peak_device_memory_mb: Amount = 0
    threads: Count
    processes: Count = 1
    hardware: Text
    system: Text
    versions: dict[str, str]


class Column(Open):
    dtype: str = Field(min_length=1, max_length=20)
    shape: list[Annotated[int, Field(ge=1, le=per_image.MOST_VALUES)]] = Field(min_length=2, max_length=2)
    data: str


class Images(Open):
    last: dict[str, Column]
    validation: dict[str, Column]


class Entry(Open):
    record: Record
    host: Host
    images: Images | None = None  # nothing of an entry that is older than this key


def tests_persons(record: Any) -> bool:
    """Whether the data set of a record has a gallery; nothing is known of what the record is."""
    dataset = record.get("dataset") if isinstance(record, dict) else None
    parts = dataset.get("pixels_sha256") if isinstance(dataset, dict) else None
    return isinstance(parts, dict) and "gallery" in parts


class Old(Open):
    """A record of another version of the protocol, which is named and left out."""

    weights_sha256: Sha256
    recipe: dict[str, Any] = {}


class OldEntry(Open):
    record: Old
    host: Host


@cache
def record_schema() -> type[Record]:
    """Of a record, with the rows of every analysis that is known here; of a newer one anything may stand there."""
    known: dict[str, Any] = {
        name: (Measured[row_schema(name)], None)  # type: ignore[misc]  # a schema that is made
        for name in analyses.names()
        if not analyses.is_probe(name)
    }
    measures = create_model("Measures", __base__=Open, **known)
    return create_model("Record", __base__=Record, measures=(measures, ...))


@cache
def entry_schema() -> type[Entry]:
    """The same of an entry."""
    return create_model("Entry", __base__=Entry, record=(record_schema(), ...))


def row_faults(record: dict[str, Any]) -> Iterator[str]:
    """In what the rows of a record, which has the form of one, are not those of its run: no headline, or not of each
    exit; rows of probes that are not as their analyses say; and what an analysis itself finds."""
    headlines = [name for name in analyses.headlines() if name in record["measures"]]
    if len(headlines) != 1:
        yield f"measures: {len(headlines)} of {', '.join(analyses.headlines())}; allowed: one of them"
    placed = [
        (f"measures.{name}.rows.{selection}", name, rows)
        for name, found in record["measures"].items()
        if name in analyses.names() and not analyses.is_probe(name)
        for selection, rows in found["rows"].items()
    ]
    for name in headlines:
        key, found = analyses.about(name)["headline"], record["measures"][name]["rows"]
        yield from (f"measures.{name}.rows.{s}: missing; it has no default" for s in SELECTIONS if s not in found)
        for selection, rows in found.items():
            lacking = [i for i, row in enumerate(rows) if row.get(key) is None]
            yield from (f"measures.{name}.rows.{selection}[{i}].{key}: missing; it has no default" for i in lacking)
    for name, probe in record.get("probes", {}).items():
        if probe["analysis"] in analyses.names():
            faults = list(enumerate(validate(row_schema(probe["analysis"]), row)[1] for row in probe["rows"]))
            yield from (f"probes.{name}.rows[{i}].{fault}" for i, found in faults for fault in found)
            if not any(found for _, found in faults):
                placed.append((f"probes.{name}.rows", probe["analysis"], probe["rows"]))
    for place, name, rows in placed:
        check = getattr(analyses.load(name), "contradictions", None)
        yield from (f"{place}: {fault}" for fault in (check(record, rows) if check else ()))
