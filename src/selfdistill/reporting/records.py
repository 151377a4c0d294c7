"""The records of a study's runs: what every table, figure and page is made from.

results/records/measured/<model>/<variant>/<seed>.json holds a run of this checkout, written by `measure`.
results/records/probes/<probe>/... holds what a probe found of the same runs' networks.
results/records/imported/... holds runs that were brought here from elsewhere, each with what it said
of its machine; these are in Git.  DVC sees all, as one dependency of the tables.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfdistill import analyses
from selfdistill.config import Recipe, Study
from selfdistill.errors import UserError
from selfdistill.outside import OutsideError, json_object
from selfdistill.params import COMPUTING
from selfdistill.protocol import PROTOCOL
from selfdistill.reporting.entries import (
    Entry,
    Host,
    Old,
    OldEntry,
    ProbedHere,
    entry_schema,
    record_schema,
    row_faults,
)
from selfdistill.reporting.older import is_older, older_entry_schema, upgraded
from selfdistill.schema import shown, validate
from selfdistill.search import COMMON, spaces_of, untuned

AGAIN = "`dvc repro` makes it again once it is removed"


class NoRecordsError(UserError):
    """None of the study's cells has a record yet."""


def read_records(study: Study) -> list[dict]:
    """The records of the study's cells that have run, in the study's order, as `read_record` gives them.

    An imported run that no longer fits the study is left out, and standard error says so.  A study in
    progress has fewer records than it lists; every table says how many seeds it rests on.
    """
    found = []
    for cell in study.cells():
        record = read_record(study, cell)
        if record and record["misfit"]:
            place = study.imported_file(*cell) if record["imported"] else study.record_file(*cell)
            print(f"{place}: left out, not of this study: {record['misfit']}", file=sys.stderr)
        elif record:
            found.append(record)
    if not found:
        raise NoRecordsError(f"{study.results / 'records'}: no record of any cell of this study; run dvc repro first")
    return found


def read_record(study: Study, cell: tuple[str, str, int]) -> dict | None:
    """The record of a cell: as it ran here, else as it was imported, else None.

    With `title`, the variant's; `host`, what the run said of its machine (None if that is not known); `imported`;
    and `misfit`: in what an imported run differs from the study (DVC watches those of this checkout), or None.
    A run of another version of the protocol is a misfit wherever it ran.
    """
    local, imported = study.record_file(*cell), study.imported_file(*cell)
    if local.is_file():
        record = local_record(study, local)
        named = {"title": study.variant(cell[1]).title, "host": local_host(study, cell, record), "imported": False}
        return {**of_cell(record, cell, local), **named, "misfit": next(protocol_faults(record), None)}
    if imported.is_file():
        entry = imported_entry(imported)
        named = {"title": study.variant(cell[1]).title, "host": entry["host"], "imported": True}
        record = of_cell(entry["record"], cell, imported)
        return {**record, **named, "misfit": next(misfits(study, record), None)}
    return None


def local_record(study: Study, path: Path) -> dict:
    """A record of this checkout, with `probes` by name where the same run was probed."""
    record = told(path, lambda _: record_schema(), AGAIN)
    if any(protocol_faults(record)):
        return record
    cell, found = path.relative_to(study.results / "records" / "measured"), {}
    for name, probe in study.probes.items():
        other = study.results / "records" / "probes" / name / cell
        probed = told(other, lambda _: ProbedHere, AGAIN) if other.is_file() else {}
        same = (probed.get("weights_sha256"), probed.get("analysis"), probed.get("data"))
        if same == (record["weights_sha256"], probe.analysis, probe.data) and not any(protocol_faults(probed)):
            told_of = ("analysis", "data", "settings", "selection", "pixels_sha256", "rows")
            found[name] = {key: probed[key] for key in told_of if key in probed}
            refuse(other, row_faults({**record, "probes": {name: found[name]}}), AGAIN)
    refuse(path, row_faults(record), AGAIN)
    return {**record, "probes": found} if found else record


def refuse(path: Path, faults: Iterator[str], remedy: str) -> None:
    """Raise OutsideError for the first of some faults."""
    for fault in faults:
        raise OutsideError(f"{path}: not what was written there ({fault}); {remedy}")


def local_host(study: Study, cell: tuple[str, str, int], record: dict) -> dict | None:
    """What a run of this checkout said of its machine, unless that is of another run of its cell."""
    path = study.host_file(*cell)
    remedy = "bring it back from Git, or remove it"
    if not path.is_file() or json_object(path, remedy).get("weights_sha256") != record["weights_sha256"]:
        return None
    return told(path, lambda _: Host, remedy)


def imported_entry(path: Path) -> dict:
    """What was imported, as `transfer.import_records` left it, in the form of today."""
    remedy = "bring it back from Git, or import it again"
    entry = told(path, schema_of_entry, remedy)
    if any(protocol_faults(entry["record"])):
        return entry
    if is_older(entry["record"]):
        entry = {**entry, "record": upgraded(entry["record"])}
    refuse(path, (f"record.{fault}" for fault in row_faults(entry["record"])), remedy)
    return entry


def schema_of_entry(content: dict) -> type[Entry]:
    """Of today's form or the older one."""
    return older_entry_schema(content) if is_older(content.get("record")) else entry_schema()


def told(path: Path, schema_of: Callable[[dict], type[BaseModel]], remedy: str) -> dict:
    """The content of a file that this project wrote.  OutsideError: it is not what was written.

    schema_of: what it must hold, by its content; of another version of the protocol little is known.
    """
    content = json_object(path, remedy)
    of_another = any(protocol_faults(content.get("record", content)))
    schema = schema_of(content)
    if of_another and schema is not Host:
        schema = OldEntry if "record" in content else Old
    _, faults = validate(schema, content)
    refuse(path, iter(faults), remedy)
    return content


def of_cell(record: dict, cell: tuple[str, str, int], path: Path) -> dict:
    """The record, if it is of this cell."""
    named = tuple(record.get(key) for key in ("model", "variant", "seed"))
    if named != cell and not any(protocol_faults(record)):
        raise OutsideError(f"{path}: the record of {shown('/'.join(map(str, named)))}; {AGAIN}")
    return record


def prepared_facts(path: Path) -> dict:
    """What preparing wrote of a data set, as far as records are held against it."""
    facts = json_object(path, AGAIN)
    if not all(isinstance(part, dict) for part in (facts.get("pixels_sha256"), facts.setdefault("counts", {}))):
        raise OutsideError(f"{path}: not what was written there (no pixels_sha256 or counts); {AGAIN}")
    return facts


def misfits(study: Study, record: dict) -> Iterator[str]:
    """In what a run's record differs from what the study declares: key, value, what is allowed."""
    if fault := next(protocol_faults(record), None):
        yield fault
        return
    resolved = study.variant(record["variant"])
    teacher, teacher_model = study.teacher_of(record["variant"])
    wanted: dict[str, Any] = {"dataset.name": study.dataset, "method": resolved.method}
    given: dict[str, Any] = {"dataset.name": record["dataset"]["name"], "method": record["method"]}
    splits = {key: getattr(study, key) for key in ("split", "training_images", "validation_images")}
    wanted |= {"teacher": teacher, "teacher_model": teacher_model, "split.split": splits.pop("split"), **splits}
    given |= {key: record.get(key) for key in ("teacher", "teacher_model", *splits)}
    given["split.split"] = record["split"]["split"]
    prepared = study.data_folder / "training" / "dataset.json"
    if prepared.is_file():
        for part, value in prepared_facts(prepared)["pixels_sha256"].items():
            wanted[f"dataset.pixels_sha256.{part}"] = value
            given[f"dataset.pixels_sha256.{part}"] = record["dataset"]["pixels_sha256"].get(part)
    of_probes = probe_values(study, record)
    wanted, given = wanted | of_probes[0], given | of_probes[1]
    # a key that is newer than the run, or that params.yaml leaves out, has its default
    recipe = {key: field.default for key, field in Recipe.model_fields.items() if not field.is_required()}
    # a hyper-parameter without a value has that of another (a reading's), which the record names
    undeclared = {key for key, value in resolved.hyper.items() if value is None}
    searched: Collection[str] = ()
    if untuned(record["variant"]):
        found = record.get("tuning", {})
        wanted |= {"tuning.trials": study.tuning.trials, "tuning.epochs": study.trial_epochs}
        given |= {f"tuning.{key}": found.get(key) for key in ("trials", "epochs")}
        undeclared |= spaces_of(resolved.method).keys()  # what the search has chosen
        searched = COMMON[resolved.recipe.optimiser]
    hyper = {key: value for key, value in resolved.hyper.items() if key not in undeclared}
    recorded = {key: value for key, value in record["hyper"].items() if key not in undeclared}
    for block, declared, own in (
        ("recipe", {**recipe, **resolved.recipe.model_dump()}, {**recipe, **record["recipe"]}),
        ("hyper", hyper, recorded),
    ):
        wanted |= {f"{block}.{key}": value for key, value in declared.items()}
        given |= {f"{block}.{key}": value for key, value in own.items()}
    free = {f"recipe.{key}" for key in (*COMPUTING, *searched)}
    for key in [*wanted, *(key for key in given if key not in wanted)]:
        if key in free or (key in wanted and key in given and given[key] == wanted[key]):
            continue
        if key not in given:
            yield f"{key}: missing; the study has {shown(wanted[key])}"
        else:
            allowed = f"the study's {shown(wanted[key])}" if key in wanted else "not in this study"
            yield f"{key}: {shown(given[key])} is not allowed; allowed: {allowed}"


def probe_values(study: Study, record: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the study says of the probes that a record holds, and what the record says; keys as in params.yaml."""
    wanted: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, probed in record.get("probes", {}).items():
        if name not in study.probes:
            continue
        probe = study.probes[name]
        wanted |= {f"probes.{name}.{key}": getattr(probe, key) for key in ("analysis", "data")}
        given |= {f"probes.{name}.{key}": probed[key] for key in ("analysis", "data")}
        if probed.get("settings") is not None and probed["analysis"] == probe.analysis:  # what is older says nothing
            wanted[f"probes.{name}.settings"] = analyses.settings(probe.analysis, probe.settings)
            given[f"probes.{name}.settings"] = probed["settings"]
        other = study.prepared(probe.data) / "training" / "dataset.json"
        if other.is_file():
            wanted[f"probes.{name}.pixels_sha256"] = prepared_facts(other)["pixels_sha256"]
            given[f"probes.{name}.pixels_sha256"] = probed["pixels_sha256"]
    return wanted, given


def protocol_faults(record: object) -> Iterator[str]:
    """Whether a run was made by another version of the protocol than this one."""
    if isinstance(record, dict) and (found := record.get("protocol", 1)) != PROTOCOL:
        yield f"protocol: {shown(found)} is not allowed; allowed: {PROTOCOL}; train it again"


def machine(record: dict) -> str:
    """Hardware and precision of a run, in the words of every table."""
    if record["host"] is None:
        return "not recorded"
    processes = record["host"].get("processes", 1)
    together = f", {processes} processes" if processes > 1 else ""
    return f"{record['host']['hardware']}{together}, {record['recipe'].get('precision', 'float32')}"
