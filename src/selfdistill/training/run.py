"""One cell of a study, from its parameters to the files in its folder.

`run.json` and `history.csv` hold what must come out the same again, bit for bit.  What depends on
the machine and the day (hardware, versions, seconds) goes to `results/hosts`, which is no output of
the stage and is never hashed.
"""

import csv
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save

from selfdistill import methods
from selfdistill.data.prepared import Dataset, read_split
from selfdistill.files import write_atomically
from selfdistill.models.trained import build, load_network, run_folder
from selfdistill.training import cost, determinism, distributed, engine, host
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.interruption import Interruption
from selfdistill.training.source import open_source

CHECKPOINTS = "SELFDISTILL_CHECKPOINTS"
OUT_OF_ROOM = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")
}


class ResourceError(Exception):
    """Memory, disk or a folder gave out; the message says which and what to do."""


def train_cell(
    study,
    *,
    model: str,
    method: str,
    seed: int,
    teacher: str | None = None,
    teacher_model: str | None = None,
    interruption: Interruption | None = None,
) -> Path:
    """Train one network of a `selfdistill.config.Study` and write its folder; returns the folder.

    teacher: the method whose trained network of the same seed teaches; teacher_model: which network that
    is, the one in training if None.

    A run that was killed goes on from its newest checkpoint.  Raises ResourceError, and what
    `engine.train` raises; under torchrun the first process writes, the others only compute.
    """
    folder = run_folder(study.results, model, method, seed)
    with resources(folder):
        recipe = study.recipe
        device = determinism.apply(recipe)
        world = distributed.join(device)
        data = study.data_folder / "training"
        dataset = Dataset.read(data)
        training, validation = open_source(data, device), engine.Split(*read_split(data, "validation", device))
        rule = methods.load(method)(**study.hyper[method])
        shape = {"channels": dataset.channels, "classes": len(dataset.classes), "size": list(dataset.size)}
        network_form = {"name": model, **shape, "exits": "exits" in rule.needs}
        taught_by, taught_record = None, None
        if teacher is not None:
            network, taught_record = load_network(
                run_folder(study.results, teacher_model or model, teacher, seed), device
            )
            taught_by = engine.frozen(network)
        inputs = {
            "model": model,
            "method": method,
            "title": rule.about["title"],
            "seed": seed,
            "teacher": teacher,
            "teacher_model": teacher_model,
            "network": network_form,
            "dataset": {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__},
            "recipe": dict(vars(recipe)),
            "hyper": {name: getattr(rule, name) for name in rule.about["hyper"]},
            "code_sha256": code_sha256(),
        }
        checkpoints = Checkpoints(checkpoint_folder(study, inputs, taught_record, device))
        if world.rank == 0:  # it alone writes; to know before the work, not after it
            for needed in (folder, checkpoints.folder):
                writable(needed)

        trained = engine.train(
            rule,
            lambda weights_seed: build(network_form, weights_seed, recipe.channels_last),
            dataset,
            training,
            validation,
            recipe,
            seed=seed,
            teacher=taught_by,
            checkpoints=checkpoints,
            interruption=interruption,
            world=world,
        )
        if world.rank == 0:
            write_run(study.results, folder, inputs, trained, taught_record, device, world.size)
            checkpoints.clear()
    return folder


def write_run(
    results: Path, folder: Path, inputs: dict, trained, taught_record: dict | None, device: str, processes: int
):
    """Write weights, history and description of a finished run into its folder, and its host file."""
    dataset = inputs["dataset"]
    exit_macs, all_macs = cost.inference_macs(trained.last, (dataset["channels"], *dataset["size"]))
    sha256 = {
        name: save_weights(folder / f"{name}.safetensors", state)
        for name, state in (
            ("weights", trained.last.state_dict()),
            ("validation_best", trained.validation_best),
            *trained.members.items(),
        )
    }
    write_atomically(folder / "history.csv", as_csv(trained.history))
    record = {
        **inputs,
        "sections": trained.last.section_count,
        "weights_sha256": sha256["weights"],
        "validation_best_sha256": sha256["validation_best"],
        "validation_best_epoch": trained.best_epoch,
        "members": {name: sha256[name] for name in trained.members},
        "cost": {
            "parameters": trained.parameters,
            "training_flops": round(trained.flops),
            "teacher_training_flops": taught_record["cost"]["training_flops"] if taught_record else 0,
            "inference_macs": exit_macs,
            "ensemble_macs": all_macs,
        },
    }
    write_atomically(folder / "run.json", (json.dumps(record, indent=1) + "\n").encode())
    host.note(results, record, device=device, seconds=trained.seconds, processes=processes)


def checkpoint_folder(study, inputs: dict, taught_record: dict | None, device: str) -> Path:
    """Where the checkpoints of this run lie: under the hash of everything that its result depends on."""
    teacher = taught_record and taught_record["weights_sha256"]
    whole = {**inputs, "teacher_sha256": teacher, "torch": torch.__version__, "device": device}
    key = hashlib.sha256(json.dumps(whole, sort_keys=True, default=list).encode()).hexdigest()
    base = Path(os.environ.get(CHECKPOINTS) or Path(study.root) / ".work" / "checkpoints")
    return base / f"{inputs['model']}-{inputs['method']}-{inputs['seed']}-{key[:16]}"


def writable(folder: Path) -> None:
    """Raise the OSError now that a write would raise later; leaves no folder that was not there."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{os.getpid()}.partial"
    probe.write_bytes(b"0")
    probe.unlink()
    if new:
        folder.rmdir()


@contextmanager
def resources(folder: Path) -> Iterator[None]:
    """Say in one line when memory, disk or a folder gives out."""
    kept = "The last checkpoint is whole; the same command goes on from it."
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_ROOM:
            raise
        place = error.filename or folder
        raise ResourceError(f"{place}: {error.strerror or error}; make room or make it writable. {kept}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(f"out of memory ({first_line(error)}); lower recipe.batch_size. {kept}") from error
    except RuntimeError as error:
        if "alloc" not in str(error) or "memory" not in str(error):
            raise
        raise ResourceError(f"out of memory ({first_line(error)}); lower recipe.batch_size. {kept}") from error


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


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


def code_sha256() -> str:
    """One hash over the source files that this run has used of the parts that shape its result."""
    package = Path(__file__).parents[1]
    used = {Path(m.__file__) for n, m in sys.modules.items() if n.startswith("selfdistill.") and m.__file__}
    parts = ("data", "methods", "models", "training")
    digest = hashlib.sha256()
    for path in sorted(used):
        relative = path.relative_to(package)
        if relative.parts[0] in parts:
            digest.update(f"{relative.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
