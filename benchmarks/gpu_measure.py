"""What gpu_run.py measures in a process of its own, so that what fails here spoils nothing there.

gpu_measure.py check METHOD FILE [--cpu]    a line of JSON for each mode: does it train rightly, and how fast
gpu_measure.py speed FOLDER MODES [--cpu]   speed.json, .md and .png: against the bare loop and a DataLoader; MODES:
                                            JSON of the switches that are right for each method to be measured
"""

import itertools
import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gpu_run

EAGER = {"compile": False, "cuda_graphs": False}
GRAPHS = {"compile": False, "cuda_graphs": True}
COMPILED = {"compile": True, "cuda_graphs": True}
CLASSES = 100  # of CIFAR-100: what a loss is divided by, or compares with, may depend on it
EPOCHS = 4  # of a check's recipe: enough for two phases of two epochs, of which the second can be seen to fall


def main() -> int:
    *arguments, cpu = [*sys.argv[1:], ""] if sys.argv[-1] != "--cpu" else sys.argv[1:]
    options = SimpleNamespace(cpu=cpu == "--cpu", data=None, state=Path())
    study = gpu_run.read_study(options)
    from selfdistill.training import determinism

    determinism.prepare_environment(study.recipe.determinism, study.recipe.threads)
    determinism.apply(study.recipe)
    kind, *rest = arguments
    if kind == "check":
        check(study, *rest, options)
    else:
        folder, modes = rest
        measure_speed(study, Path(folder), json.loads(modes), options)
    return 0


def check(study, method: str, file: str, options) -> None:
    """A short training in bfloat16 in each mode, from the method's first phase to its last.

    A mode is right if every phase trains to a finite and falling loss, and to one that agrees with the eager mode's
    while both are near the weights that they began from.  The slower a mode may begin, the later it comes: a line that
    is written stays.
    """
    modes = [EAGER] if options.cpu else [EAGER, GRAPHS]
    if not options.cpu and method in ("plain", "byot"):
        modes.append(COMPILED)
    if not options.cpu and "host" in gpu_run.needs_of(method):
        modes = [EAGER]
    if package := gpu_run.missing_package(method):
        write(file, {"method": method, "right": False, "left_out": f"{package} is not installed here"})
        return
    size, steps = (8, 12) if options.cpu else (32, 24)
    eager = None
    for mode in modes:
        entry = {"method": method, "mode": mode}
        recipe = gpu_run.changed(
            study.recipe, **mode, precision="bfloat16", epochs=EPOCHS, warmup_epochs=0, learning_rate=0.02
        )
        try:
            entry |= short_run(study, recipe, method, size, steps)
            entry["right"] = entry["finite"] and entry["falling"]
            if eager is None:
                eager = entry["losses"]
            else:  # bfloat16 rounds otherwise when kernels are fused
                entry["apart_from_eager"] = abs(entry["losses"][1] - eager[1])
                entry["right"] = entry["right"] and entry["apart_from_eager"] < 0.05 * abs(eager[1]) + 0.005
        except Exception as error:
            entry |= {"right": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
        write(file, entry)


def write(file: str, entry: dict) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps(entry) + "\n")


def short_run(study, recipe, name: str, size: int, steps: int) -> dict:
    """A whole short training, epochs of `steps` steps, on made images whose class can be seen: losses by epoch, and the
    seconds that a whole training would take, what comes before its usual steps included.

    The network has the study's number of classes and the method the study's hyper-parameters; ten of the classes occur,
    so that so few steps learn to tell them.
    """
    import torch

    from selfdistill.benchmark import loops

    device = torch.device(recipe.device)
    shape = {"size": size, "channels": 3, "classes": CLASSES, "steps": steps}
    task = loops.Task(study.models[0], name, recipe, device, **shape, hyper=study.hyper[name])
    seen = (task.images.float().mean(dim=(1, 2, 3)).argsort().argsort() * 10) // len(task.images)
    task.images = (task.images // 4 + (seen * 18).to(torch.uint8).view(-1, 1, 1, 1)).contiguous()
    task.labels = seen * (CLASSES // 10)
    phases = [phase.epochs for phase in task.rule.phases(recipe.epochs)]
    loop, run = loops.ours(task)
    seconds = [loop() for _ in range(sum(phases))]
    losses = [row["loss"] for row in run.history]
    ends = list(itertools.accumulate(phases))
    of_phases = [losses[end - epochs : end] for end, epochs in zip(ends, phases, strict=True)]
    if all(len(part) == 1 for part in of_phases):  # phases of one epoch each, which go on from one another
        of_phases = [losses]
    a_step = sum(seconds[2:]) / len(seconds[2:]) / steps
    whole = study.recipe.epochs * study.training_images // study.recipe.batch_size
    return {
        "finite": all(map(math.isfinite, losses)),
        "falling": all(part[-1] < part[0] for part in of_phases if len(part) > 1),
        "losses": losses,
        "first_seconds": seconds[0] + seconds[1],
        "seconds_per_step": a_step,
        "training_seconds": seconds[0] + seconds[1] + whole * a_step,
    }


def measure_speed(study, folder: Path, modes: dict, options) -> None:
    """Plain training and BYOT, and larger batches, each with switches that were found right; each is written when it
    is done, for the time may end."""
    from selfdistill.benchmark import measure

    shape = {"size": 32, "channels": 3, "classes": CLASSES}
    shape |= {"steps": 4, "rounds": 2, "workers": 0} if options.cpu else {"steps": 100, "rounds": 5, "workers": 8}
    batch, results = study.recipe.batch_size, []
    cases = [("plain", batch), ("byot", batch), ("plain", 4 * batch), ("plain", 8 * batch)]
    for method, size in cases[: 1 if options.cpu else None]:
        if modes.get(method) is not None:
            recipe = gpu_run.changed(study.recipe, batch_size=size, epochs=100_000, **modes[method])
            case = {**shape, "workers": shape["workers"] if size == batch else -1}
            results.append(measure.bench(recipe, model=study.models[0], method=method, **case))
            save(folder, results, [])
    few = {key: value for key, value in shape.items() if key != "workers"}
    switches = partial(measure.switches, gpu_run.changed(study.recipe, epochs=100_000))
    save(folder, results, switches(**{**few, "rounds": 3}, model=study.models[0], method="plain"))


def save(folder: Path, results: list[dict], switches: list[dict]) -> None:
    from selfdistill.benchmark import measure

    measure.write(folder, "speed", results, switches)
    (folder / "speed.svg").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
