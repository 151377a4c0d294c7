"""Evaluate all seeds of a variant, one after the other.

A seed that was evaluated before from equal inputs is not evaluated again (`stages.finished`): a block that was killed
goes on with the seed that it was at, and a seed added to a block is the only one that is evaluated.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.data.prepared import PreparedError, open_splits
from selfdistill.evaluation.described import dataset_of
from selfdistill.evaluation.inputs import FILES
from selfdistill.evaluation.splits import ClassImages, open_test
from selfdistill.evaluation.weights import refuse_imported
from selfdistill.files import sha256_of
from selfdistill.locks import turn
from selfdistill.models.trained import read_run
from selfdistill.outside import OutsideError, json_object, untrusted
from selfdistill.search import untuned
from selfdistill.stages import finished
from selfdistill.stages.evaluate import evaluate_run
from selfdistill.stages.plan import SPLIT, evaluation_plan
from selfdistill.stages.train import finished_folder, writable
from selfdistill.training import determinism

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

BACK = "`dvc checkout` or `dvc repro` brings it back"


def evaluate_variant(study: "Study", *, model: str, variant: str) -> None:
    """Predict test and validation images with every seed's run."""
    from tqdm import tqdm  # may be missing on a machine that only trains

    runs = runs_here(study, model, variant)
    writable(study.results / "predictions" / model / variant)
    folder, device = study.data_folder / "test", determinism.apply(study.recipe)
    with untrusted(PreparedError, folder, "cannot be read", "prepare the data set again"):
        test = open_test(folder, device)
        data = {"test": hashes(folder), "training": hashes(study.data_folder / "training")}
        inputs = {**evaluation_plan(study, model), **data}
    outputs = finished.locked_outputs(Path("dvc.lock"))
    base = untuned(variant)
    for seed in tqdm(study.seeds_of(variant), unit="run", disable=None, leave=False):
        run, record = study.run_folder(model, variant, seed), study.prediction_file(model, variant, seed)
        targets = {name: record.with_name(record.stem + ending) for name, ending in FILES.items()}
        targets["record.json"] = record

        search = json.loads(study.search_file(model, base, seed).read_text()) if base else None

        def write(target: Path, key: str, run: Path = run, seed: int = seed, search: dict | None = search) -> None:
            evaluate_run(run, test, validation_of(study, seed, device), target, key, search)

        own = {**inputs, "run": runs[seed], **({"search": search} if search else {})}
        cell = f"evaluation-{model}-{variant}-{seed}"
        once(finished_folder(study), cell, own, targets, outputs, write, record.parent)


def validation_of(study: "Study", seed: int, device: str) -> ClassImages:
    """The validation images of a seed, as its trainings see them."""
    wanted = {key: getattr(study, key) for key in SPLIT}
    return ClassImages(*open_splits(study.data_folder / "training", **wanted, seed=seed, device=device).validation)


def runs_here(study: "Study", model: str, variant: str) -> dict[int, dict]:
    """What each seed's run says of itself.  Raises WeightsError for one that is not here, before any work."""
    folders = {seed: study.run_folder(model, variant, seed) for seed in study.seeds_of(variant)}
    for folder in folders.values():
        refuse_imported(folder)
    return {seed: run_here(folder, (model, variant, seed)) for seed, folder in folders.items()}


def run_here(folder: Path, cell: tuple[str, str, int]) -> dict:
    """What the run in a folder says of itself, the data set included.  OutsideError: it is not the run of this cell, or
    holds what JSON does not know."""
    run, file = read_run(folder), folder / "run.json"
    of_cell(json_object(file, BACK), cell, file, BACK)
    dataset_of(run, file)
    return run


def of_cell(told: dict, cell: tuple[str, str, int], file: Path, remedy: str) -> None:
    """OutsideError unless what a file says is of this network, variant and seed."""
    named = [told.get(key) for key in ("model", "variant", "seed")]
    if named != list(cell):
        raise OutsideError(f"{file}: of {named}, not of {list(cell)}; {remedy}")


def once(
    folder: Path,
    cell: str,
    inputs: dict,
    targets: finished.Files,
    outputs: dict[str, str],
    write: Callable[[Path, str], None],
    place: Path,
) -> None:
    """Put the files of an evaluation where they belong, written now or before.

    folder: where finished evaluations wait; inputs: all that the files depend on; targets: where each file belongs, by
    its name; outputs: `finished.locked_outputs`; write: writes the files to a folder, and the key that it is given
    into record.json; place: the folder that is DVC's output.
    """
    from tqdm import tqdm  # may be missing on a machine that only trains

    key, root = finished.key_of(inputs), folder.parents[1]
    finished.sweep(folder, cell, finished.files_in_cache(root, outputs, targets, place))
    waiting, staged = folder / f"{cell}-{key[:16]}", folder / f"{cell}-{key[:16]}.staged.partial"
    with turn(root, waiting.name):
        cached = finished.files_in_cache(root, outputs, targets, place)
        if finished.restore(waiting, cached, staged, partial(is_evaluation, key=key)):
            tqdm.write(f"{cell}: finished before, from equal inputs; not evaluated again")
        else:
            finished.keep(waiting, lambda target: write(target, key), staged)
        move_whole(staged, targets)


def move_whole(staged: Path, targets: finished.Files) -> None:
    """Put the files of an evaluation in their places, all or none."""
    beside = {path.with_name(path.name + ".partial"): path for path in targets.values()}
    try:
        for (name, path), new in zip(targets.items(), beside, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(staged / name, new)  # copies, where results lies on another disk
        for new, path in beside.items():
            os.replace(new, path)
            new.unlink(missing_ok=True)  # two links to one file: replacing does nothing, and leaves both
    except OSError as error:
        for new in beside:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def is_evaluation(files: finished.Files, key: str) -> bool:
    """Whether these files are the whole evaluation of this key, each as it was written."""
    try:
        told = json.loads(files["record.json"].read_bytes())["evaluation"]
        return told["key"] == key and all(sha256_of(files[name]) == sha256 for name, sha256 in told["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path there; Snakemake's `.snakemake_timestamp` is none of them."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
