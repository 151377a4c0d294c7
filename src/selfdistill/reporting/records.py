"""The records of a study's runs: what every table, figure and page is made from.

results/records/<model>/<method>/<seed>.json holds a run of this checkout, written by `evaluate`.
results/records/robustness/<data set>/... holds what `robustness` found of the same runs on other images.
results/records/imported/... holds runs that were brought here from elsewhere, each with what it said
of its machine; these are in Git.  DVC sees all, as one dependency of the tables.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from selfdistill import methods
from selfdistill.config import Recipe, shown

# Keys of a recipe that say where and how a run is computed, not what is trained: by these alone may
# an imported run differ from the study.
COMPUTING = frozenset(
    {
        "device",
        "threads",
        "determinism",
        "precision",
        "channels_last",
        "compile",
        "cuda_graphs",
        "processes",
        "workers",
    }
)


class NoRecordsError(Exception):
    """None of the study's cells has a record yet."""


def record_file(study, model: str, method: str, seed: int) -> Path:
    return study.results / "records" / model / method / f"{seed}.json"


def host_file(study, model: str, method: str, seed: int) -> Path:
    return study.results / "hosts" / model / method / f"{seed}.json"


def imported_file(study, model: str, method: str, seed: int) -> Path:
    return study.results / "records" / "imported" / model / method / f"{seed}.json"


def read_records(study) -> list[dict]:
    """The records of the study's cells that have run, in the study's order, as `read_record` gives them.

    An imported run that no longer fits the study is left out, and standard error says so.  A study in
    progress has fewer records than it lists; every table says how many seeds it rests on.
    """
    found = []
    for cell in study.cells():
        record = read_record(study, cell)
        if record and record["misfit"]:
            print(f"{imported_file(study, *cell)}: left out, not of this study: {record['misfit']}", file=sys.stderr)
        elif record:
            found.append(record)
    if not found:
        raise NoRecordsError(f"{study.results / 'records'}: no record of any cell of this study; run dvc repro first")
    return found


def read_record(study, cell: tuple[str, str, int]) -> dict | None:
    """The record of a cell: as it ran here, else as it was imported, else None.

    With `host`, what the run said of its machine (None if that is not known), `imported`, and `misfit`:
    in what an imported run differs from the study (DVC watches those of this checkout), or None.
    """
    local, imported = record_file(study, *cell), imported_file(study, *cell)
    if local.is_file():
        record = local_record(study, local)
        return {**record, "host": local_host(study, record), "imported": False, "misfit": None}
    if imported.is_file():
        entry = json.loads(imported.read_text())
        fault = next(misfits(study, entry["record"]), None)
        return {**entry["record"], "host": entry["host"], "imported": True, "misfit": fault}
    return None


def local_record(study, path: Path) -> dict:
    """A record of this checkout, with `robustness` by data set where the same run was tested on other images."""
    record, cell = json.loads(path.read_text()), path.relative_to(study.results / "records")
    found = {}
    for name in study.robustness:
        other = study.results / "records" / "robustness" / name / cell
        tested = json.loads(other.read_text()) if other.is_file() else {}
        if tested.get("weights_sha256") == record["weights_sha256"]:
            found[name] = {key: tested[key] for key in ("selection", "pixels_sha256", "tests")}
    return {**record, "robustness": found} if found else record


def local_host(study, record: dict) -> dict | None:
    """What a run of this checkout said of its machine, unless that is of another run of its cell."""
    path = host_file(study, record["model"], record["method"], record["seed"])
    host = json.loads(path.read_text()) if path.is_file() else {}
    return host if host.get("weights_sha256") == record["weights_sha256"] else None


def misfits(study, record: dict) -> Iterator[str]:
    """In what a run's record differs from what the study declares: key, value, what is allowed."""
    method = record["method"]
    teacher, teacher_model = study.teacher_of(method)
    wanted = {"dataset.name": study.dataset, "teacher": teacher, "teacher_model": teacher_model}
    given = {"dataset.name": record["dataset"]["name"], "teacher": record["teacher"]}
    given["teacher_model"] = record.get("teacher_model")  # newer than the oldest records
    prepared = study.data_folder / "training" / "dataset.json"
    if prepared.is_file():
        for part, value in json.loads(prepared.read_text())["pixels_sha256"].items():
            wanted[f"dataset.pixels_sha256.{part}"] = value
            given[f"dataset.pixels_sha256.{part}"] = record["dataset"]["pixels_sha256"].get(part)
    for name, tested in record.get("robustness", {}).items():
        other = study.prepared(name) / "training" / "dataset.json"
        if name in study.robustness and other.is_file():
            wanted[f"robustness.{name}.pixels_sha256"] = json.loads(other.read_text())["pixels_sha256"]
            given[f"robustness.{name}.pixels_sha256"] = tested["pixels_sha256"]
    # a key that is newer than the run, or that params.yaml leaves out, has its default
    recipe = {key: field.default for key, field in Recipe.model_fields.items() if not field.is_required()}
    hyper = {key: spec["default"] for key, spec in methods.about(method)["hyper"].items()}
    for block, default, declared in (
        ("recipe", recipe, study.recipe.model_dump()),
        ("hyper", hyper, study.hyper[method]),
    ):
        wanted |= {f"{block}.{key}": value for key, value in {**default, **declared}.items()}
        given |= {f"{block}.{key}": value for key, value in {**default, **record[block]}.items()}
    free = {f"recipe.{key}" for key in COMPUTING}
    for key in [*wanted, *(key for key in given if key not in wanted)]:
        if key in free or (key in wanted and key in given and given[key] == wanted[key]):
            continue
        if key not in given:
            yield f"{key}: missing; the study has {shown(wanted[key])}"
        else:
            allowed = f"the study's {shown(wanted[key])}" if key in wanted else "not in this study"
            yield f"{key}: {shown(given[key])} is not allowed; allowed: {allowed}"


def machine(record: dict) -> str:
    """Hardware and precision of a run, in the words of every table."""
    if record["host"] is None:
        return "not recorded"
    processes = record["host"].get("processes", 1)
    together = f", {processes} processes" if processes > 1 else ""
    return f"{record['host']['hardware']}{together}, {record['recipe'].get('precision', 'float32')}"


def prune(study, results: Path) -> list[Path]:
    """Remove what `results` holds of cells that the study does not list; returns what was removed.

    Imported records stay: nothing here could make them anew, and no table reads those of other cells.
    """
    listed = {f"{model}/{method}/{seed}" for model, method, seed in study.cells()}
    removed = []
    tested = sorted((results / "records" / "robustness").glob("*"))
    for folder in [*(results / kind for kind in ("runs", "predictions", "records", "hosts")), *tested]:
        known = listed if folder not in tested or folder.name in study.robustness else set()
        for path in sorted(folder.glob("*/*/*")):
            cell = path.relative_to(folder).with_suffix("").as_posix()
            if cell in known or path.name == ".gitignore" or cell.startswith(("imported/", "robustness/")):
                continue
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                file.unlink()
            if path.is_dir():
                path.rmdir()
            removed.append(path)
        for parent in [*sorted(folder.glob("*/*")), *sorted(folder.glob("*")), folder]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return removed
