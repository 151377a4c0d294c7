"""Train methods in float64, as one of the processes that torchrun starts, from a checkpoint to a stop or the end.

numbers_worker.py OUT CHECKPOINTS STOP METHOD...    STOP: steps after which a signal comes; 0 for none
"""

import json
import sys
from pathlib import Path

import torch
from made import stop_after, train

from selfdistill.training import distributed, engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.stopping import Interrupted

RECIPE = {"batch_size": 11, "learning_rate": 0.002}


def trained(names: list[str], folder: Path, stop: int, world: distributed.World) -> dict[str, list]:
    """The histories of the methods; of a training that was stopped, an empty one."""
    asking, engine.ASKING = engine.ASKING, 0  # after every step, so that the signal comes in the middle
    torch.set_default_dtype(torch.float64)
    found = {}
    try:
        for name in names:
            signal = stop_after(stop) if stop else None
            checkpoints = Checkpoints(folder / name)
            try:
                run = train(name, world=world, checkpoints=checkpoints, interruption=signal, **RECIPE)
                found[name] = run.history
            except Interrupted:
                found[name] = []
    finally:
        torch.set_default_dtype(torch.float32)
        engine.ASKING = asking
    return found


if __name__ == "__main__":
    out, folder, stop, *names = sys.argv[1:]
    torch.set_num_threads(1)
    world = distributed.join("cpu")
    histories = trained(names, Path(folder), int(stop), world)
    if world.rank == 0:
        Path(out).write_text(json.dumps(histories))
