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

from tqdm import tqdm

from selfdistill.data.prepared import PreparedError
from selfdistill.evaluation.described import dataset_of
from selfdistill.evaluation.weights import refuse_imported
from selfdistill.files import sha256_of
from selfdistill.locks import turn
from selfdistill.models.trained import read_run
from selfdistill.outside import json_object, untrusted
from selfdistill.search import untuned
from selfdistill.stages import finished
from selfdistill.stages.evaluate import evaluate_robustness, evaluate_run, open_test
from selfdistill.stages.plan import evaluation_plan
from selfdistill.stages.train import finished_folder, writable
from selfdistill.training import determinism

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study


def evaluate_variant(study: "Study", *, model: str, variant: str) -> None:
    """Predict the test split with every seed's run, and write predictions and records."""
    runs = runs_here(study, model, variant)
    writable(study.results / "predictions" / model / variant)
    writable(study.results / "records" / model / variant)
    folder = study.data_folder / "test"
    with untrusted(PreparedError, folder, "cannot be read", "prepare the data set again"):
        test = open_test(folder, determinism.apply(study.recipe))
        inputs = {**evaluation_plan(study, model), "test": hashes(folder)}
    outputs = finished.locked_outputs(Path("dvc.lock"))
    base = untuned(variant)
    for seed in tqdm(study.seeds_of(variant), unit="run", disable=None, leave=False):
        run = study.run_folder(model, variant, seed)
        search = json.loads(study.search_file(model, base, seed).read_text()) if base else None
        targets = {
            "predictions.safetensors": study.results / "predictions" / model / variant / f"{seed}.safetensors",
            "record.json": study.record_file(model, variant, seed),
        }

        def write(target: Path, key: str, run: Path = run, search: dict | None = search) -> None:
            evaluate_run(run, test, target / "predictions.safetensors", target / "record.json", key, search)

        own = {**inputs, "run": runs[seed], **({"search": search} if search else {})}
        once(finished_folder(study), f"evaluation-{model}-{variant}-{seed}", own, targets, outputs, write)


def robustness_of_variant(study: "Study", *, model: str, variant: str, name: str) -> None:
    """Test every seed's run on the data set `name`, with the weights that the study selects, and write
    results/records/robustness/<name>/<model>/<variant>/<seed>.json."""
    runs = runs_here(study, model, variant)
    prepared, device = study.prepared(name), determinism.apply(study.recipe)
    writable(study.results / "records" / "robustness" / name / model / variant)
    with untrusted(PreparedError, prepared, "cannot be read", "prepare the data set again"):
        facts = json_object(prepared / "training" / "dataset.json", "prepare the data set again")
        parts = {"name": str, "classes": list, "counts": dict, "pixels_sha256": dict}
        if faults := [key for key, kind in parts.items() if not isinstance(facts.get(key), kind)]:
            raise ValueError(f"dataset.json has no {faults[0]}")
    inputs = {**evaluation_plan(study, model), "selection": study.selection, "other": hashes(prepared)}
    outputs = finished.locked_outputs(Path("dvc.lock"))
    for seed in tqdm(study.seeds_of(variant), unit="run", disable=None, leave=False):
        run = study.run_folder(model, variant, seed)
        file = study.results / "records" / "robustness" / name / model / variant / f"{seed}.json"

        def write(target: Path, key: str, run: Path = run) -> None:
            evaluate_robustness(run, prepared, device, study.selection, target / "record.json", key)

        own, cell = {**inputs, "run": runs[seed]}, f"robustness-{name}-{model}-{variant}-{seed}"
        once(finished_folder(study), cell, own, {"record.json": file}, outputs, write)


def runs_here(study: "Study", model: str, variant: str) -> dict[int, dict]:
    """What each seed's run says of itself.  Raises WeightsError for one that is not here, before any work."""
    folders = {seed: study.run_folder(model, variant, seed) for seed in study.seeds_of(variant)}
    for folder in folders.values():
        refuse_imported(folder)
    runs = {seed: read_run(folder) for seed, folder in folders.items()}
    for seed, folder in folders.items():
        dataset_of(runs[seed], folder / "run.json")
    return runs


def once(
    folder: Path,
    cell: str,
    inputs: dict,
    targets: finished.Files,
    outputs: dict[str, str],
    write: Callable[[Path, str], None],
) -> None:
    """Put the files of an evaluation where they belong, written now or before.

    folder: where finished evaluations wait; inputs: all that the files depend on; targets: where each file belongs, by
    its name; outputs: `finished.locked_outputs`; write: writes the files to a folder, and the key that it is given
    into record.json.
    """
    key, root = finished.key_of(inputs), folder.parents[1]
    finished.sweep(folder, cell, finished.files_in_cache(root, outputs, targets))
    waiting, staged = folder / f"{cell}-{key[:16]}", folder / f"{cell}-{key[:16]}.staged.partial"
    with turn(root, waiting.name):
        cached = finished.files_in_cache(root, outputs, targets)
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
