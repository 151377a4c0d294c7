"""The search of a variant's hyper-parameters: all trials of all replicates, and the training of each winner.

results/tuning/MODEL/VARIANT holds each trial, SEED-TRIAL.json, and what each search found, SEED.json;
results/runs/MODEL/VARIANT-tuned/SEED the run of a winner.  A trial that was finished before from equal inputs is
not trained again: more trials, or replicates, train only the new ones.
"""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill import methods
from selfdistill.errors import UserError
from selfdistill.files import write_atomically
from selfdistill.locks import turn
from selfdistill.models.trained import load_network
from selfdistill.search import TUNED, untuned, winner
from selfdistill.stages import finished, tally
from selfdistill.stages.interruption import Interruption
from selfdistill.stages.loggers import loggers
from selfdistill.stages.plan import tuning_plan
from selfdistill.stages.train import cached, checkpoint_folder, finished_folder, resources, train_seed, writable
from selfdistill.stages.trial import run_trial, values_of
from selfdistill.training import determinism, distributed
from selfdistill.training.checkpoint import Checkpoints

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study


class TuningError(UserError):
    """A search of which no trial came to an end; the message says which."""


def tune(study: "Study", *, model: str, variant: str, interruption: Interruption | None = None) -> None:
    """Search a variant's values and train each replicate's winner; the working folder is the study's.

    Raises TuningError where all trials of a replicate diverged, and what `train_block` raises.
    """
    plan = tuning_plan(study, model, variant)
    tuned, seeds = variant + TUNED, study.seeds_of(variant + TUNED)
    with resources(study.results / "runs"):
        device = determinism.apply(study.recipe)
        world = distributed.join(device)
        outputs, waiting = finished.locked_outputs(Path("dvc.lock")), finished_folder(study)
        for folder in (study.results / "runs" / model / tuned, study.search_file(model, variant, 0).parent, waiting):
            if world.rank == 0:  # it alone writes
                writable(folder)
        for seed in seeds:
            if world.rank == 0:
                finished.sweep(waiting, f"{model}-{tuned}-{seed}", cached(study, outputs, model, tuned, seed))
            began = time.time()
            found = search(study, plan, seed, device, world, outputs, interruption)
            if world.rank == 0:
                content = (json.dumps(found, allow_nan=False) + "\n").encode()
                write_atomically(study.search_file(model, variant, seed), content)
            with loggers(f"{model}/{tuned}/{seed}", world.rank) as progress:
                final = final_plan(plan, found)
                trained = train_seed(study, final, seed, device, world, interruption, outputs, progress)
            if trained and world.rank == 0:
                tally.tell(study, model, tuned, began, outputs)


def final_plan(plan: dict, found: dict) -> dict:
    """What the training of a search's winner depends on: the same as that of any other variant."""
    best = found["results"][found["winner"]]
    own = {key: value for key, value in plan.items() if key not in ("tuning", "search", "search_code_sha256")}
    values = {block: {**plan[block], **best[block]} for block in ("hyper", "recipe")}
    return {**own, **values, "variant": plan["variant"] + TUNED}


def search(
    study: "Study",
    plan: dict,
    seed: int,
    device: str,
    world: distributed.World,
    outputs: dict[str, str],
    interruption: Interruption | None,
) -> dict[str, Any]:
    """All trials of a replicate; returns what their file says: trials and epochs, the values as published, each
    trial's values and results, the winner, and the FLOPs of all trials and of those of the teacher."""
    model, variant = plan["model"], plan["variant"]
    teacher, teacher_flops, sha256 = None, 0, None
    if plan["teacher"] is not None:
        teacher, taught = load_network(study.run_folder(model, plan["teacher"], seed), device)
        told = json.loads(study.search_file(model, str(untuned(plan["teacher"])), seed).read_text())
        teacher_flops, sha256 = told["flops"] + told["teacher_flops"], taught["weights_sha256"]
    own = {key: value for key, value in plan.items() if key != "tuning"}
    inputs = {**own, "epochs": plan["tuning"]["epochs"], "seed": seed, "teacher_sha256": sha256}
    inputs["pixels"] = json.loads((study.data_folder / "training" / "dataset.json").read_text())["pixels_sha256"]
    results = []
    for trial in range(plan["tuning"]["trials"]):
        key, cell = finished.key_of({**inputs, "trial": trial}), f"{model}-{variant}-trial-{seed}-{trial}"
        checkpoints = Checkpoints(checkpoint_folder(study, cell, key, device))

        def work(trial: int = trial, checkpoints: Checkpoints = checkpoints) -> dict[str, Any]:
            with loggers(f"{model}/{variant}/{seed}/{trial}", world.rank) as progress:
                return run_trial(
                    study,
                    plan,
                    values_of(study, plan, seed, trial, device, teacher),
                    seed,
                    trial,
                    device=device,
                    teacher=teacher,
                    checkpoints=checkpoints,
                    interruption=interruption,
                    progress=progress,
                    world=world,
                )

        results.append(once(study, cell, key, study.trial_file(model, variant, seed, trial), outputs, world, work))
        if world.rank == 0:
            checkpoints.clear()
    best = winner(result["validation_nll"] for result in results)
    if best is None:
        first = results[0]["diverged"]
        raise TuningError(f"{model}/{variant}/{seed}: all {len(results)} trials diverged, the first so: {first}")
    rule = methods.create(plan["method"], **plan["hyper"])  # has the values that depend on others, such as a reading's
    dearest = max(result["flops"] or 0 for result in results)
    return {
        "trials": len(results),
        "epochs": plan["tuning"]["epochs"],
        "published": {"hyper": {key: getattr(rule, key) for key in plan["hyper"]}, "recipe": plan["recipe"]},
        "results": [{key: value for key, value in result.items() if key != "key"} for result in results],
        "winner": best,
        "flops": sum(result["flops"] or dearest for result in results),  # one that diverged counts as a whole one
        "teacher_flops": teacher_flops,
    }


def once(
    study: "Study",
    cell: str,
    key: str,
    file: Path,
    outputs: dict[str, str],
    world: distributed.World,
    work: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What a trial's file says, after putting it in its place, written now or before; work: does the trial."""
    root, targets = Path(study.root), {"trial.json": file}
    waiting = finished_folder(study) / f"{cell}-{key[:16]}"
    staged = waiting.with_name(f"{waiting.name}.staged.partial")

    def write(folder: Path) -> None:
        content = json.dumps({"key": key, **work()}, allow_nan=False) + "\n"
        write_atomically(folder / "trial.json", content.encode())

    told = None
    if world.rank:  # it only computes
        if not world.most(0):
            work()
    else:
        finished.sweep(finished_folder(study), cell, finished.files_in_cache(root, outputs, targets, file.parent))
        with turn(root, waiting.name):
            cached = finished.files_in_cache(root, outputs, targets, file.parent)
            if not world.most(int(finished.restore(waiting, cached, staged, partial(is_trial, key=key)))):
                finished.keep(waiting, write, staged)
            content = (staged / "trial.json").read_bytes()
            write_atomically(file, content)
            shutil.rmtree(staged, ignore_errors=True)
        told = json.loads(content)
    return world.gather(told)[0]


def is_trial(files: finished.Files, key: str) -> bool:
    """Whether this file is the whole trial of this key."""
    try:
        return json.loads(files["trial.json"].read_bytes())["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return False
