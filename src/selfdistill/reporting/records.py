"""The records of a study's runs: what every table, figure and page is made from."""

import json
from pathlib import Path


class NoRecordsError(Exception):
    """None of the study's cells has a record yet."""


def cells(study) -> list[tuple[str, str, int]]:
    """(model, method, seed) of every cell, in the study's order."""
    return [(m, method, seed) for m in study.models for method in study.all_methods for seed in study.seeds]


def record_file(study, model: str, method: str, seed: int) -> Path:
    return study.results / "records" / model / method / f"{seed}.json"


def read_records(study) -> list[dict]:
    """The records of the study's cells that have run, in the study's order.

    A study in progress has fewer than it lists; every table says how many seeds it rests on.
    """
    paths = [record_file(study, *cell) for cell in cells(study)]
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if not found:
        raise NoRecordsError(f"{study.results / 'records'}: no record of any cell of this study; run dvc repro first")
    return found


def read_hosts(study) -> list[dict]:
    """What the runs said of their machine, each with model, method and seed; possibly fewer than runs."""
    hosts = []
    for model, method, seed in cells(study):
        path = study.results / "hosts" / model / method / f"{seed}.json"
        if path.is_file():
            hosts.append({"model": model, "method": method, "seed": seed, **json.loads(path.read_text())})
    return hosts


def prune(study, results: Path) -> list[Path]:
    """Remove what `results` holds of cells that the study does not list; returns what was removed."""
    listed = {f"{model}/{method}/{seed}" for model, method, seed in cells(study)}
    removed = []
    for kind in ("runs", "predictions", "records", "hosts"):
        folder = results / kind
        for path in sorted(folder.glob("*/*/*")):
            cell = path.relative_to(folder).with_suffix("").as_posix()
            if cell in listed or path.name == ".gitignore":
                continue
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                file.unlink()
            if path.is_dir():
                path.rmdir()
            removed.append(path)
        for parent in sorted(folder.glob("*/*")) + sorted(folder.glob("*")):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return removed
