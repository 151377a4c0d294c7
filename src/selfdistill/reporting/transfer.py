"""Runs carried from one machine to another: packed there, checked and unpacked here.

A packed file is gzipped text, one JSON object a line: {"record": results/records/measured/M/VARIANT/SEED.json, with
what probes found, "host": results/hosts/M/VARIANT/SEED.json, "images": what the run says of each test image, as
`per_image.encoded` writes it}; `images` may be missing.  The machine that trained needs no DVC and no Git for it.
"""

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill import analyses, methods
from selfdistill.config import Study
from selfdistill.data.archives import RATIO
from selfdistill.errors import UserError
from selfdistill.files import write_atomically
from selfdistill.outside import OutsideError, reason_of, regular_bytes
from selfdistill.reporting import per_image
from selfdistill.reporting.entries import Entry, Record, row_faults, tests_persons
from selfdistill.reporting.files import write_together
from selfdistill.reporting.older import is_older, upgraded
from selfdistill.reporting.records import (
    imported_entry,
    local_host,
    local_record,
    machine,
    misfits,
    prepared_facts,
    protocol_faults,
    read_record,
    schema_of_entry,
)
from selfdistill.schema import shown, validate
from selfdistill.summary.grouping import at_exits, headline_of

PACKED, LINE = 2**28, 2**26  # bytes of a packed file, and of one of its lines unpacked, at most
FAULTS = 20  # of a file that are told


class TransferError(UserError):
    """Something that cannot be packed; the message says what and why."""


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
    of each image or what a probe found of it, or `replace`, which never takes that away; one of another run of the same
    cell is a fault, unless `replace`.
    """
    outcomes = []
    for path in paths:
        try:
            entries, faults = read_packed(study, path, replace)
            told, contents = [], {}
            for cell, entry in entries.items() if not faults else ():
                outcome, changed = placed(study, cell, entry, path, replace)
                told.append(outcome)
                if changed:
                    contents[study.imported_file(*cell)] = compact(entry)
        except OutsideError as error:
            outcomes.append(Outcome("refused", str(error)))
            continue
        write_together(contents)
        outcomes += [Outcome("refused", f"{path}{fault}") for fault in faults] or told
    return outcomes


def placed(study: Study, cell: tuple, entry: dict, path: Path, replace: bool) -> tuple[Outcome, bool]:
    """What becomes of an entry of a file, and whether it is to be written."""
    there = existing(study.imported_file(*cell))
    name = "/".join(map(str, cell))
    shadow = "; the run of this checkout is shown instead" if study.record_file(*cell).is_file() else ""
    bare = "" if entry.get("images") else "; it carries nothing per image"
    same = there is not None and there["record"]["weights_sha256"] == entry["record"]["weights_sha256"]
    lost, gained = (carried(there) - carried(entry), carried(entry) - carried(there)) if there else (set(), set())
    if same and (lost or not (replace or gained)):
        less = f", with {', '.join(sorted(lost))}, which this file lacks" if lost else ""
        return Outcome("kept", f"{name}: this run is there already{less}{shadow}"), False
    return Outcome("replaced" if there else "imported", f"{name} from {path}{bare}{shadow}"), True


def carried(entry: dict) -> set[str]:
    """What an entry has that another one of the same run may lack, in words."""
    probes = {f"what the probe {name} found" for name in entry["record"].get("probes", {})}
    return probes | ({"what it says of each image"} if entry.get("images") else set())


def existing(path: Path) -> dict | None:
    return imported_entry(path) if path.is_file() else None


def read_packed(study: Study, path: Path, replace: bool) -> tuple[dict[tuple, dict], list[str]]:
    """The entries of a file by cell, and its faults, each with its place in the file: FAULTS at most."""
    entries: dict[tuple, dict] = {}
    faults: list[str] = []
    number = 0
    try:
        for number, line in enumerate(unpacked(path), 1):
            cell, content, found = read_line(study, line, entries, replace)
            place = f", line {number}" + (f", {'/'.join(map(str, cell))}" if cell else "")
            faults += [f"{place}: {fault}" for fault in found]
            if len(faults) > FAULTS:
                return {}, [*faults[:FAULTS], ": has further faults; it is not read on"]
            if cell and not found:
                entries[cell] = content
    except (OSError, OutsideError) as error:  # gzip.BadGzipFile is one
        return {}, [f": cannot be read ({reason_of(error)}); allowed: a file of `selfdistill records export`"]
    except (EOFError, zlib.error) as error:
        return {}, [f": cut off or damaged ({error}); bring it here again"]
    if not number:
        faults.append(": holds no entry")
    return entries, faults


def unpacked(path: Path) -> Iterator[bytes]:
    """The lines of a packed file.  OutsideError: more of them, or longer ones, than a study has."""
    packed = regular_bytes(path, PACKED)
    most = RATIO * len(packed) + 2**20
    with gzip.open(io.BytesIO(packed)) as file:
        while line := file.readline(LINE + 1):
            most -= len(line)
            if len(line) > LINE or most < 0:
                raise OutsideError(f"it unpacks to lines of more than {LINE:,} bytes, or to {RATIO} times its size")
            yield line


def read_line(
    study: Study, line: bytes, entries: dict[tuple, dict], replace: bool
) -> tuple[tuple | None, dict, list[str]]:
    """The cell of a line's entry, if it says it, the entry, and its faults."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        text = shown(line[:200].decode(errors="replace").rstrip("\n"))
        return None, {}, [f"{text} is not allowed; allowed: a JSON object with record and host"]
    cell, found = check_entry(study, content)
    if cell and not found:
        found = [*unwritable(content), *conflicts(study, cell, content, entries, replace)]
    return cell, content, found


def unwritable(content: dict) -> Iterator[str]:
    """Whether an entry holds a number that is none, in a place that no schema knows."""
    try:
        compact(content)
    except ValueError:
        yield "record or host: NaN or Infinity in a key that is not known here is not allowed; allowed: finite numbers"


def check_entry(study: Study, content: dict) -> tuple[tuple | None, list[str]]:
    """The cell that an entry says it is of, if it says so, and the entry's faults in words."""
    record: Any = content.get("record")
    named = tuple(record.get(key) for key in ("model", "variant", "seed")) if isinstance(record, dict) else ()
    cell = named if named and all(type(part) in (str, int) for part in named) else None
    if isinstance(record, dict) and (fault := next(protocol_faults(record), None)):
        return cell, [f"record.{fault}"]  # another version has other keys, of which the schema would tell one by one
    entry, faults = validate(schema_of_entry(content), content)
    if entry is None:
        return cell, faults
    if is_older(record):
        record = upgraded(record)
    if cell not in study.cells():
        return cell, list(outside(study, entry.record))
    resolved, given = study.variant(entry.record.variant), study.weights.get(entry.record.model)
    # a method may train for longer than the recipe says to each: its class knows, which loads torch
    phases = methods.load(resolved.method)(**resolved.hyper).phases(resolved.recipe.epochs)
    taken = given is not None and given.use == "teacher"
    faults = [f"record.{fault}" for fault in misfits(study, record)]
    faults += contradictions(entry, record, 0 if taken else sum(phase.epochs for phase in phases))
    if entry.images and not faults:  # what it says of each image is held against numbers that are there
        faults += image_faults(study, record, content["images"])
    return cell, faults


def image_faults(study: Study, record: dict, images: dict) -> Iterator[str]:
    """Faults of what an entry says of each image: what cannot be read, and what is of another run or test."""
    persons = tests_persons(record)
    try:
        found = per_image.decoded(images, persons)
    except per_image.PerImageError as error:
        yield str(error)
        return
    prepared = study.data_folder / "training" / "dataset.json"
    counts = prepared_facts(prepared)["counts"] if prepared.is_file() else {}
    name = "first_rank" if persons else "correct"
    key, exits = analyses.about(headline_of(record))["headline"], len(record["cost"]["inference_macs"])
    for selection, columns in found.items():
        numbers = at_exits(record, selection)
        for column, wanted in ((name, numbers[:exits]), (per_image.TOGETHER[name], numbers[exits:])):
            if column not in columns:
                continue
            right, place = columns[column], f"images.{selection}.{column}"
            shape = [len(wanted), counts.get("query" if persons else "test", right.shape[1])]
            if list(right.shape) != shape:
                yield f"{place}.shape: {list(right.shape)} is not allowed; allowed: {shape}"
                continue
            for number, (told, values) in enumerate(zip(wanted, right, strict=True)):
                share = (values == 1).sum() / max(1, (values > 0).sum() if persons else len(values))
                if abs(share - told) > 1e-9:  # of what float64 leaves of a share; a single image is far above it
                    said = f"a share of {share:g} is not allowed; allowed: the record's {key}, {told:g}"
                    yield f"{place}[{number}]: {said}"


def outside(study: Study, record: Record) -> Iterator[str]:
    """Why a cell is none of the study's."""
    networks = [*study.models, *study.teacher_models]
    trained = [study.teacher] if record.model in study.teacher_models else study.all_variants
    for key, known in (("model", networks), ("variant", trained), ("seed", study.seeds_of(record.variant))):
        value = getattr(record, key)
        if value not in known:
            yield f"record.{key}: {shown(value)} is not allowed; allowed: {', '.join(map(str, known))}"


def contradictions(entry: Entry, told: dict, epochs: int) -> Iterator[str]:
    """Faults that no single value shows; told: the record, in the form of today; epochs: of the method's whole
    training."""
    record, history = entry.record, entry.record.history
    if entry.host.weights_sha256 != record.weights_sha256:
        yield (
            f"host.weights_sha256: {shown(entry.host.weights_sha256)} is not allowed; "
            f"allowed: the record's {shown(record.weights_sha256)}"
        )
    if record.network.name != record.model:
        yield f"record.network.name: {shown(record.network.name)} is not allowed; allowed: {shown(record.model)}"
    yield from (f"record.{fault}" for fault in row_faults(told))
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
