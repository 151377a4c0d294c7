"""How many runs of a study are finished and about how long the others take: one line after each training.

The time is what the trainings of this session took, on this machine; a session is the process group that a shell gives
to a command, as long as no pause in it was longer than BREAK.  A variant that was not trained in it is put at the time
of the others of its network, by epochs and by the cost of its method.
"""

import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from selfdistill import methods
from selfdistill.locks import TERMINAL
from selfdistill.search import untuned
from selfdistill.stages import finished

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

BREAK = 600.0  # seconds
Cell = tuple[str, str, int]  # network, variant, seed


class Training(NamedTuple):
    """One that ended; began, ended: in seconds since 1970."""

    model: str
    variant: str
    began: float
    ended: float


def tell(study: "Study", model: str, variant: str, began: float, outputs: dict[str, str]) -> None:
    """Say how far the study is, after a training that began then; outputs: `finished.locked_outputs`.

    What cannot be written is left out: no training fails for this line.
    """
    with suppress(OSError, ValueError):
        trainings = noted(study, Training(model, variant, round(began, 2), round(time.time(), 2)))
        whole, left = len(study.cells()), open_cells(study, outputs)
        line = f"train {whole - len(left)} of {whole}"
        if left:
            line += f", {in_words(seconds_left(study, left, trainings))} left"
        print(line, file=sys.stderr, flush=True)
        if place := os.environ.get(TERMINAL):  # what a job of Snakemake says goes to its log
            with open(place, "a") as terminal:
                terminal.write(f"{line}\n")


def noted(study: "Study", training: Training) -> list[Training]:
    """Note a training; returns those of this session, oldest first."""
    folder = Path(study.root) / ".work" / "progress"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - 86400:  # another session's
            path.unlink(missing_ok=True)
    name = f"{Path.cwd().name}-{platform.node()}-{os.getpgrp()}"
    with open(folder / name, "a+") as file:
        file.write(json.dumps(training) + "\n")
        file.flush()
        file.seek(0)
        listed = {(model, variant) for model, variant, _ in study.cells()}
        found = [Training(*json.loads(line)) for line in file if line.endswith("]\n")]  # a kill may have cut one
        trainings = sorted((t for t in found if (t.model, t.variant) in listed), key=lambda t: t.ended)
    for i in range(len(trainings) - 1, 0, -1):
        if trainings[i].began - trainings[i - 1].ended > BREAK:
            return trainings[i:]
    return trainings


def open_cells(study: "Study", outputs: dict[str, str]) -> list[Cell]:
    """The cells without a run of today's parameters and code: none in its place, waiting, or in DVC's cache."""
    waiting = defaultdict(list)
    for path in (Path(study.root) / ".work" / "finished").glob("*/run.json"):
        waiting[path.parent.name[:-17]].append(path)  # CELL-0123456789abcdef
    left = []
    for cell in study.cells():
        model, variant, seed = cell
        base = untuned(variant)
        plan_file = study.results / "plan" / "training" / model / f"{base or variant}.json"
        plan = json.loads(plan_file.read_text()) if plan_file.is_file() else {}
        if base:  # what a search has chosen is not known before
            plan = {key: value for key, value in plan.items() if key not in ("variant", "teacher", "hyper", "recipe")}
        files = kept(study, cell, waiting[f"{model}-{variant}-{seed}"], outputs)
        if not any(fits(file, plan, seed) for file in files):
            left.append(cell)
    return left


def kept(study: "Study", cell: Cell, waiting: list[Path], outputs: dict[str, str]) -> Iterator[Path]:
    """What every run of a cell that is kept says of itself."""
    model, variant, seed = cell
    if (file := study.run_folder(*cell) / "run.json").is_file():
        yield file
    yield from waiting
    for files in finished.in_cache(Path(study.root), outputs, study.results / "runs" / model / variant, seed):
        if "run.json" in files:
            yield files["run.json"]


def fits(file: Path, plan: dict, seed: int) -> bool:
    """Whether a run.json is of this plan.  Of the split it says more, and of a hyper-parameter that the plan leaves
    open (None) what it was."""
    hyper = {key: value for key, value in plan.get("hyper", {}).items() if value is not None}
    same = {key: value for key, value in plan.items() if key not in ("split", "hyper")}
    try:
        record = json.loads(file.read_bytes())
        return (
            record["seed"] == seed
            and all(record[key] == value for key, value in same.items())
            and all(record["hyper"][key] == value for key, value in hyper.items())
        )
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or of another protocol
        return False


def seconds_left(study: "Study", cells: list[Cell], trainings: list[Training]) -> float:
    """An estimate for cells that are not trained yet.  Trainings that overlapped count as going on so; a pause between
    two, for the start of a process or an evaluation, as coming again."""

    def work(variant: str) -> float:
        resolved = study.variant(variant)
        trials = study.search_epochs if untuned(variant) else 0
        return methods.about(resolved.method)["cost"] * resolved.recipe.epochs * (1 + trials)

    def estimate(model: str, variant: str) -> float:
        same = [t.ended - t.began for t in trainings if (t.model, t.variant) == (model, variant)]
        if same:
            return fmean(same)
        near = [t for t in trainings if t.model == model] or trainings
        return work(variant) * sum(t.ended - t.began for t in near) / sum(work(t.variant) for t in near)

    whole = max(t.ended for t in trainings) - min(t.began for t in trainings)
    at_work = sum(t.ended - t.began for t in trainings)
    return sum(estimate(model, variant) for model, variant, _ in cells) * whole / max(at_work, 1e-3)


def in_words(seconds: float) -> str:
    """`about 3 minutes`: rounded, as it is an estimate."""
    if seconds < 60:
        return "less than a minute"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or unit == "minute":
            count = round(seconds / length)
            return f"about {count} {unit}{'s' if count > 1 else ''}"
    raise AssertionError
