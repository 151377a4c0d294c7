"""Runs carried from one machine to another: packed there, checked and unpacked here.

A packed file is gzipped text, one JSON object a line: {"record": results/records/M/VARIANT/SEED.json,
"host": results/hosts/M/VARIANT/SEED.json, "images": what the run says of each test image, as `per_image.encoded`
writes it}; `images` may be missing.  The machine that trained needs no DVC and no Git for it.
"""

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from selfdistill import methods
from selfdistill.config import Study
from selfdistill.errors import UserError
from selfdistill.files import write_atomically
from selfdistill.reporting import per_image
from selfdistill.reporting.records import (
    local_host,
    local_record,
    machine,
    misfits,
    protocol_faults,
    read_record,
)
from selfdistill.schema import Sha256, shown, validate

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class TransferError(UserError):
    """Something that cannot be packed; the message says what and why."""


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


@dataclass(frozen=True)
class Outcome:
    """What became of an entry, or of a whole file: imported, replaced, kept or refused; and in words."""

    state: str
    text: str


def export_records(study: Study, path: Path) -> int:
    """Pack the runs of this checkout that have a record; returns their number.  Equal runs give equal bytes.

    A run whose predictions are not here is packed without what it says of each image, and standard error says so.
    Raises TransferError for a run of another version of the protocol, or without a host file.
    """
    entries = []
    for cell in study.cells():
        file = study.record_file(*cell)
        if not file.is_file():
            continue
        record = local_record(study, file)
        if fault := next(protocol_faults(record), None):
            raise TransferError(f"{file}: {fault}")
        host = local_host(study, cell, record)
        if host is None:
            raise TransferError(f"{file}: no file in {study.results / 'hosts'} says what machine made this run")
        entry = {"record": record, "host": host}
        try:
            entry["images"] = per_image.encoded(per_image.of_predictions(per_image.file_of(study, cell), record))
        except per_image.PerImageError as error:
            print(f"{file}: packed with nothing per image: {error}", file=sys.stderr)
        entries.append(entry)
    if not entries:
        raise TransferError(f"{study.results / 'records'}: no record of any cell of this study")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        packed.writelines(compact(entry) for entry in entries)
    write_atomically(path, buffer.getvalue())
    return len(entries)


def compact(entry: dict) -> bytes:
    """An entry on one line; floats keep every digit, as Python writes them."""
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def import_records(study: Study, paths: list[Path], replace: bool = False) -> list[Outcome]:
    """Check packed files and put their entries into results/records/imported.

    A file with a fault is refused as a whole, each fault in a line of its own; the others are not
    affected.  An entry of the run that is there already changes nothing, unless it alone carries what the run says
    of each image, or `replace`, which never takes that away; one of another run of the same cell is a fault, unless
    `replace`.
    """
    outcomes = []
    for path in paths:
        entries, faults = read_packed(study, path, replace)
        if faults:
            outcomes += [Outcome("refused", f"{path}{fault}") for fault in faults]
            continue
        for cell, entry in entries.items():
            target, content = study.imported_file(*cell), compact(entry)
            there = existing(target)
            name = "/".join(map(str, cell))
            shadow = "; the run of this checkout is shown instead" if study.record_file(*cell).is_file() else ""
            bare = "" if entry.get("images") else "; it carries nothing per image"
            same = there is not None and there["record"]["weights_sha256"] == entry["record"]["weights_sha256"]
            more = bool(there and there.get("images"))  # what is there carries what each image got
            if same and ((bare and more) or not (replace or (more < (not bare)))):
                less = ", with what it says of each image, which this file lacks" if bare and more else ""
                outcomes.append(Outcome("kept", f"{name}: this run is there already{less}{shadow}"))
                continue
            write_atomically(target, content)
            outcomes.append(Outcome("replaced" if there else "imported", f"{name} from {path}{bare}{shadow}"))
    return outcomes


def existing(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def read_packed(study: Study, path: Path, replace: bool) -> tuple[dict[tuple, dict], list[str]]:
    """The entries of a file by cell, and its faults, each with its place in the file."""
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
    except OSError as error:  # gzip.BadGzipFile is one
        return {}, [f": cannot be read ({error.strerror or error}); allowed: a file of `selfdistill records export`"]
    except (EOFError, zlib.error) as error:
        return {}, [f": cut off or damaged ({error}); bring it here again"]
    entries: dict[tuple, dict] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        place = f", line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            text = shown(line.decode(errors="replace"))
            faults.append(f"{place}: {text} is not allowed; allowed: a JSON object with record and host")
            continue
        cell, found = check_entry(study, content)
        if cell and not found:
            found = [*unwritable(content), *conflicts(study, cell, content, entries, replace)]
        place += f", {'/'.join(map(str, cell))}" if cell else ""
        faults += [f"{place}: {fault}" for fault in found]
        if cell and not found:
            entries[cell] = content
    if not lines:
        faults.append(": holds no entry")
    return entries, faults


def unwritable(content: dict) -> Iterator[str]:
    """Whether an entry holds a number that is none, in a place that no schema knows."""
    try:
        compact(content)
    except ValueError:
        yield "record or host: NaN or Infinity in a key that is not known here is not allowed; allowed: finite numbers"


def check_entry(study: Study, content: dict) -> tuple[tuple | None, list[str]]:
    """The cell that an entry says it is of, if it says so, and the entry's faults in words."""
    record: Any = content.get("record")
    schema: type[Entry] = Entry[RetrievalMetrics] if tests_persons(record) else Entry[ExitMetrics]
    named = tuple(record.get(key) for key in ("model", "variant", "seed")) if isinstance(record, dict) else ()
    cell = named if named and all(type(part) in (str, int) for part in named) else None
    if isinstance(record, dict) and (fault := next(protocol_faults(record), None)):
        return cell, [f"record.{fault}"]  # another version has other keys, of which the schema would tell one by one
    entry, faults = validate(schema, content)
    if entry is None:
        return cell, faults
    if cell not in study.cells():
        return cell, list(outside(study, entry.record))
    resolved, given = study.variant(entry.record.variant), study.weights.get(entry.record.model)
    # a method may train for longer than the recipe says to each: its class knows, which loads torch
    phases = methods.load(resolved.method)(**resolved.hyper).phases(resolved.recipe.epochs)
    taken = given is not None and given.use == "teacher"
    contradicted = contradictions(entry, 0 if taken else sum(phase.epochs for phase in phases))
    per_images = image_faults(study, content) if entry.images else ()
    return cell, [*(f"record.{fault}" for fault in misfits(study, record)), *contradicted, *per_images]


def tests_persons(record: Any) -> bool:
    """Whether the data set of a record has a gallery; nothing is known of what the record is."""
    dataset = record.get("dataset") if isinstance(record, dict) else None
    parts = dataset.get("pixels_sha256") if isinstance(dataset, dict) else None
    return isinstance(parts, dict) and "gallery" in parts


def image_faults(study: Study, content: dict) -> Iterator[str]:
    """Faults of what an entry says of each image: what cannot be read, and what is of another run or test."""
    record = content["record"]
    persons = tests_persons(record)
    try:
        found = per_image.decoded(content["images"], persons)
    except per_image.PerImageError as error:
        yield str(error)
        return
    prepared = study.data_folder / "training" / "dataset.json"
    counts = json.loads(prepared.read_text()).get("counts", {}) if prepared.is_file() else {}
    name = "first_rank" if persons else "correct"
    for selection, columns in found.items():
        exits, right = record["test"][selection]["exits"], columns[name]
        shape = [len(exits), counts.get("query" if persons else "test", right.shape[1])]
        if list(right.shape) != shape:
            yield f"images.{selection}.{name}.shape: {list(right.shape)} is not allowed; allowed: {shape}"
            continue
        for number, (metrics, values) in enumerate(zip(exits, right, strict=True)):
            key = "rank1" if persons else "accuracy"
            share = (values == 1).sum() / max(1, (values > 0).sum() if persons else len(values))
            if abs(share - metrics[key]) > 1e-9:  # of what float64 leaves of a share; a single image is far above it
                place = f"images.{selection}.{name}[{number}]"
                yield f"{place}: a share of {share:g} is not allowed; allowed: the record's {key}, {metrics[key]:g}"


def outside(study: Study, record: Record) -> Iterator[str]:
    """Why a cell is none of the study's."""
    networks = [*study.models, *study.teacher_models]
    trained = [study.teacher] if record.model in study.teacher_models else study.all_variants
    for key, known in (("model", networks), ("variant", trained), ("seed", study.seeds)):
        value = getattr(record, key)
        if value not in known:
            yield f"record.{key}: {shown(value)} is not allowed; allowed: {', '.join(map(str, known))}"


def contradictions(entry: Entry, epochs: int) -> Iterator[str]:
    """Faults that no single value shows; epochs: of the method's whole training."""
    record, test, history = entry.record, entry.record.test, entry.record.history
    if entry.host.weights_sha256 != record.weights_sha256:
        yield (
            f"host.weights_sha256: {shown(entry.host.weights_sha256)} is not allowed; "
            f"allowed: the record's {shown(record.weights_sha256)}"
        )
    if record.network.name != record.model:
        yield f"record.network.name: {shown(record.network.name)} is not allowed; allowed: {shown(record.model)}"
    exits = len(record.cost.inference_macs)
    others = {
        f"robustness.{name}.tests[{i}]": tested
        for name, other in record.robustness.items()
        for i, tested in enumerate(other.tests)
    }
    for place, tested in ({"test.last": test.last, "test.validation": test.validation} | others).items():
        if len(tested.exits) != exits:
            yield (
                f"record.{place}.exits: {len(tested.exits)} entries are not allowed; "
                f"allowed: {exits}, one for each of record.cost.inference_macs"
            )
        if exits > 1 and tested.ensemble is None:
            yield f"record.{place}.ensemble: missing; a network of {exits} exits has one"
    members, known = set(test.last.members), {*record.members, "together"} if record.members else set()
    if members != known:
        yield (
            f"record.test.last.members: {shown(sorted(members))} is not allowed; "
            f"allowed: {shown(sorted(known))}, the record's members and all together"
        )
    rows = list(range(1, epochs + 1)) or [0]
    if history.epoch != rows:
        yield f"record.history.epoch: {shown(history.epoch)} is not allowed; allowed: {rows[0]} to {rows[-1]}"
    for column, values in history:
        if len(values) != len(rows):
            yield f"record.history.{column}: {len(values)} entries are not allowed; allowed: {len(rows)}, one an epoch"
    if record.validation_best_epoch > epochs:
        yield f"record.validation_best_epoch: {record.validation_best_epoch} is not allowed; allowed: 1 to {epochs}"


def conflicts(study: Study, cell: tuple, content: dict, entries: dict, replace: bool) -> list[str]:
    """Whether another run of the cell stands in the way: earlier in the file, or imported before."""
    weights = content["record"]["weights_sha256"]
    if cell in entries and entries[cell]["record"]["weights_sha256"] != weights:
        return [f"record.weights_sha256: {shown(weights)} is a second run of this cell in this file; allowed: one"]
    there = existing(study.imported_file(*cell))
    if there and there["record"]["weights_sha256"] != weights and not replace:
        return [
            f"record.weights_sha256: {shown(weights)} is another run than the imported one, "
            f"{shown(there['record']['weights_sha256'])}; give --replace to put it in its place"
        ]
    return []


def listing(study: Study) -> list[dict]:
    """One row a cell of the study: what the tables show of it, local, imported, left out or missing."""
    rows = []
    for cell in study.cells():
        record = read_record(study, cell)
        row: dict[str, Any] = dict(zip(("model", "variant", "seed"), cell, strict=True))
        if record is None:
            rows.append({**row, "state": "missing"})
            continue
        state = "left out" if record["misfit"] else "imported" if record["imported"] else "local"
        facts = {"machine": machine(record), "weights_sha256": record["weights_sha256"]}
        seconds = {"seconds": record["host"]["seconds"]} if record["host"] else {}
        reason = {"misfit": record["misfit"]} if record["misfit"] else {}
        rows.append({**row, "state": state, **facts, **seconds, **reason})
    return rows
