"""What a run's record says, and an entry of a packed file: a record, its host, and perhaps its images."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from selfdistill.reporting import per_image
from selfdistill.schema import Sha256

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Open(BaseModel):
    """What must be there; a newer version may write more."""

    model_config = ConfigDict(extra="allow", strict=True)


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


class Record(Open, Generic[M]):
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
    test: Test[M]
    robustness: dict[str, Robustness] = {}
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


class Entry(Open, Generic[M]):
    record: Record[M]
    host: Host
    images: Images | None = None  # nothing of an entry that is older than this key


def tests_persons(record: Any) -> bool:
    """Whether the data set of a record has a gallery; nothing is known of what the record is."""
    dataset = record.get("dataset") if isinstance(record, dict) else None
    parts = dataset.get("pixels_sha256") if isinstance(dataset, dict) else None
    return isinstance(parts, dict) and "gallery" in parts


class TestedHere(Robustness):
    """What `robustness` wrote of a run of this checkout."""

    tests: list[OtherImages]


class Old(Open):
    """A record of another version of the protocol, which is named and left out."""

    weights_sha256: Sha256
    recipe: dict[str, Any] = {}


class OldEntry(Open):
    record: Old
    host: Host


def record_schema(record: Any) -> type[Record]:
    """Of a record: what is measured of classes, or of persons."""
    return Record[RetrievalMetrics] if tests_persons(record) else Record[ExitMetrics]


def entry_schema(content: dict[str, Any]) -> type[Entry]:
    """The same of an entry."""
    return Entry[RetrievalMetrics] if tests_persons(content.get("record")) else Entry[ExitMetrics]
