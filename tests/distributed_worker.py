"""Train methods on the made images, alone or as one of the processes that torchrun starts.

distributed_worker.py OUT CHECKPOINTS KIND METHOD...    KIND: float64, from one seed, or float32, from three
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from made import VARIANTS, stop_after, train

from selfdistill.training import distributed, engine
from selfdistill.training.checkpoint import Checkpoints
from selfdistill.training.stopping import Interrupted

# Batches of 11, 11 and 6, so that the shares of two processes are uneven
RECIPE = {"batch_size": 11, "learning_rate": 0.002}
SEEDS = {"float64": 1, "float32": 3}
out, folder, kind, *names = sys.argv[1:]
engine.ASKING = 0  # after every step, so that the signal comes in the middle
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
world = distributed.join("cpu")
torch.set_default_dtype(getattr(torch, kind))
results = {}
for name in names:
    runs = [train(name, seed=seed, world=world, **RECIPE) for seed in range(SEEDS[kind])]
    weights = torch.cat([t.double().flatten() for t in runs[0].last.state_dict().values()]).sum().item()
    results[name] = {
        "history": [run.history for run in runs],
        "flops": runs[0].flops,
        "weights": world.gather(weights),
    }
    if name in VARIANTS or world.size == 1:  # how a single process goes on tests/test_resume.py tells
        continue
    checkpoints = Checkpoints(Path(folder) / name)
    signalled = stop_after(5 if world.rank == world.size - 1 else 10**9)  # only one of the processes
    with pytest.raises(Interrupted):
        train(name, world=world, checkpoints=checkpoints, interruption=signalled, **RECIPE)
    results[name]["resumed"] = train(name, world=world, checkpoints=checkpoints, **RECIPE).history
if world.rank == 0:
    Path(out).write_text(json.dumps(results))
