"""A block of runs of a study, from its parameters to the files in its folder.

`run.json` and `history.csv` hold what must come out the same again, bit for bit.  What depends on
the machine and the day (hardware, versions, seconds) goes to `results/hosts`, which is not an output of
the stage and is never hashed.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from selfdistill import host
from selfdistill.errors import OUT_OF_ROOM, UserError, lacking
from selfdistill.files import sha256_of, write_atomically
from selfdistill.locks import turn
from selfdistill.models.trained import load_network, weight_hashes
from selfdistill.stages import finished, tally
from selfdistill.stages.cell import Cell, given_network, open_cell, train_cell
from selfdistill.stages.interruption import Interruption
from selfdistill.stages.plan import training_plan
from selfdistill.training import cost, determinism, distributed
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.progress import Progress

if TYPE_CHECKING:  # its library, pydantic, may be missing on a machine that only trains
    from selfdistill.config import Study

CHECKPOINTS = "SELFDISTILL_CHECKPOINTS"


class ResourceError(UserError):
    """Memory, disk or a folder gave out; the message says which and what to do."""


def train_block(
    study: "Study", *, model: str, variant: str, block: int | str, interruption: Interruption | None = None
) -> None:
    """Train a network with a variant from each seed of a block, and write a folder each; the working folder is the
    study's.

    A seed that was finished before from equal inputs is not trained again (`stages.finished`); one that was
    killed goes on from its newest checkpoint.  Raises ResourceError, and what `engine.train` raises; under
    torchrun the first process writes, the others only compute.
    """
    from selfdistill.config import seeds_of
    from selfdistill.stages.loggers import loggers  # a library, tqdm, may be missing on a machine that only trains

    plan = training_plan(study, model, variant)
    folders = {seed: study.run_folder(model, variant, seed) for seed in seeds_of(block)}
    with resources(study.results / "runs"):
        device = determinism.apply(study.recipe)
        world = distributed.join(device)
        waiting, outputs = finished_folder(study), finished.locked_outputs(Path("dvc.lock"))
        if world.rank == 0:
            for folder in {path.parent for path in folders.values()} | {waiting}:
                writable(folder)  # it alone writes; to know before the work, not after it
            for seed in folders:
                finished.sweep(waiting, f"{model}-{variant}-{seed}", cached(study, outputs, model, variant, seed))
        for seed in folders:
            began = time.time()
            with loggers(f"{model}/{variant}/{seed}", world.rank) as progress:
                trained = train_seed(study, plan, seed, device, world, interruption, outputs, progress)
            if trained and world.rank == 0:
                tally.tell(study, model, variant, began, outputs)


def finished_folder(study: "Study") -> Path:
    return Path(study.root) / ".work" / "finished"


def cached(study: "Study", outputs: dict[str, str], model: str, variant: str, seed: int) -> Iterator[finished.Files]:
    """Runs of a cell in DVC's cache, of whatever inputs; outputs: what dvc.lock names, read once a block."""
    return finished.in_cache(Path(study.root), outputs, study.results / "runs" / model / variant, seed)


def train_seed(
    study: "Study",
    plan: dict,
    seed: int,
    device: str,
    world: distributed.World,
    interruption: Interruption | None,
    outputs: dict[str, str],
    progress: Progress | None = None,
) -> bool:
    """One run of a block; whether it had to be trained."""
    model, variant = plan["model"], plan["variant"]
    folder = study.run_folder(model, variant, seed)
    cell = open_cell(study, plan, seed, device)
    teacher, taught = None, None
    if plan["teacher"] is not None:
        teacher, taught = load_network(study.run_folder(plan["teacher_model"] or model, plan["teacher"], seed), device)
    inputs = {**plan, **cell.facts, "seed": seed, "teacher_sha256": taught and taught["weights_sha256"]}
    key = finished.key_of(inputs)
    waiting = finished_folder(study) / f"{model}-{variant}-{seed}-{key[:16]}"
    # it alone writes; one that a killed engine has left behind may still be at it
    with turn(Path(study.root), waiting.name) if world.rank == 0 else nullcontext():
        found = cached(study, outputs, model, variant, seed)
        restored = world.rank == 0 and finished.restore(waiting, found, folder, partial(is_run, key=key))
        if restored:
            print(f"{model}/{variant}/{seed}: finished before, from equal inputs; not trained again")
        if world.most(int(restored)):  # what the first process found counts for all
            return False
        host.begin()
        checkpoints = Checkpoints(checkpoint_folder(study, f"{model}-{variant}-{seed}", key, device))
        if odd := [path for path in checkpoints.files() if not path.is_file()]:
            raise ResourceError(f"{odd[0]}: no regular file in place of a checkpoint; take it away")
        if world.rank == 0:
            writable(checkpoints.folder)
        recipe, given = type(study.recipe)(**plan["recipe"]), study.weights.get(model)
        if given and given.use == "teacher":
            trained = given_network(cell)
        else:
            trained = train_cell(
                cell,
                recipe,
                seed,
                teacher=teacher,
                checkpoints=checkpoints,
                interruption=interruption,
                progress=progress or Progress(),
                world=world,
            )
        if world.rank == 0:

            def write(target: Path) -> None:
                write_run(target, {**inputs, "key": key}, cell, trained, taught)
                described = json.loads((target / "run.json").read_text())
                file, seconds = study.host_file(model, variant, seed), trained.seconds
                host.note(file, described, device=device, seconds=seconds, processes=world.size)

            finished.keep(waiting, write, folder)  # the host's file first: a run that is whole is never trained again
            checkpoints.clear()
    return True


def is_run(files: finished.Files, key: str) -> bool:
    """Whether these files are the whole run of this key, each unchanged since it was written."""
    try:
        record = json.loads(files["run.json"].read_bytes())
        hashes = {f"{name}.safetensors": sha256 for name, sha256 in weight_hashes(record).items()}
        hashes["history.csv"] = record["history_sha256"]
        return record["key"] == key and all(sha256_of(files[name]) == h for name, h in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_run(folder: Path, inputs: dict, cell: Cell, trained: Any, taught: dict | None) -> None:
    """Write weights, history and description of a finished run into a folder."""
    exit_macs, all_macs = cost.inference_macs(trained.last, (cell.dataset.channels, *cell.dataset.size))
    states = {"weights": trained.last.state_dict(), "validation_best": trained.validation_best, **trained.members}
    states |= {f"kept_{epoch}": state for epoch, state in trained.kept.items()}
    sha256 = {name: save_weights(folder / f"{name}.safetensors", state) for name, state in states.items()}
    history = as_csv(trained.history)
    write_atomically(folder / "history.csv", history)
    record = {
        **inputs,
        "sections": trained.last.section_count,
        "weights_sha256": sha256["weights"],
        "validation_best_sha256": sha256["validation_best"],
        "validation_best_epoch": trained.best_epoch,
        "history_sha256": hashlib.sha256(history).hexdigest(),
        "members": {name: sha256[name] for name in trained.members},
        "kept": {str(epoch): sha256[f"kept_{epoch}"] for epoch in trained.kept},
        **({"label_noise": trained.label_noise} if trained.label_noise else {}),
        "cost": {
            "parameters": trained.parameters,
            "training_flops": round(trained.flops),
            "teacher_training_flops": taught["cost"]["training_flops"] if taught else 0,
            "inference_macs": exit_macs,
            "ensemble_macs": all_macs,
        },
    }
    write_atomically(folder / "run.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def checkpoint_folder(study: "Study", cell: str, key: str, device: str) -> Path:
    """Where the checkpoints of a run lie: under the hash of everything that its bits depend on."""
    whole = hashlib.sha256(f"{key} {torch.__version__} {device}".encode()).hexdigest()
    base = Path(os.environ.get(CHECKPOINTS) or Path(study.root) / ".work" / "checkpoints")
    return base / f"{cell}-{whole[:16]}"


def writable(folder: Path) -> None:
    """Raise the OSError now that a write would raise later, with the folder's name; leaves nothing that was not
    there."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{os.getpid()}.partial"
    try:
        probe.write_bytes(b"0")
    except OSError as error:  # a full disk names no file, and leaves an empty one
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        with suppress(OSError):  # a disk that cannot be written refuses this, too
            probe.unlink()
        if new:
            folder.rmdir()


@contextmanager
def resources(folder: Path) -> Iterator[None]:
    """Say in one line when memory, disk or a folder gives out."""
    kept = "The last checkpoint is whole; the same command goes on from it."
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        said = lacking(error, folder)
        if said is None or (isinstance(error, OSError) and error.errno not in OUT_OF_ROOM):
            raise
        less = "" if isinstance(error, OSError) else "; lower recipe.batch_size"
        raise ResourceError(f"{said}{less}. {kept}") from error


def as_csv(rows: list[dict]) -> bytes:
    """Rows as CSV; a term that only some phases have is empty in the others."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def save_weights(path: Path, state: dict) -> str:
    """Write safetensors atomically; returns the file's SHA-256."""
    content = save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
