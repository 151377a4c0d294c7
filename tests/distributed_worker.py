"""Train methods on the made images, alone or as one of the processes that torchrun starts.

distributed_worker.py OUT CHECKPOINTS METHOD...
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
SEEDS = 3
out, folder, *names = sys.argv[1:]
engine.ASKING = 0  # after every step, so that the signal comes in the middle
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
world = distributed.join("cpu")
results = {}
for name in names:
    torch.set_default_dtype(torch.float64)
    exact = train(name, world=world, **RECIPE)
    torch.set_default_dtype(torch.float32)
    results[name] = {"exact": exact.history}
    if name in VARIANTS:
        continue
    runs = [train(name, seed=seed, world=world, **RECIPE) for seed in range(SEEDS)]
    checkpoints = Checkpoints(Path(folder) / name)
    signalled = stop_after(5 if world.rank == world.size - 1 else 10**9)  # only one of the processes
    with pytest.raises(Interrupted):
        train(name, world=world, checkpoints=checkpoints, interruption=signalled, **RECIPE)
    resumed = train(name, world=world, checkpoints=checkpoints, **RECIPE)
    weights = torch.cat([t.double().flatten() for t in runs[0].last.state_dict().values()]).sum().item()
    results[name] |= {
        "history": [run.history for run in runs],
        "resumed": resumed.history,
        "flops": runs[0].flops,
        "weights": world.gather(weights),
    }
if world.rank == 0:
    Path(out).write_text(json.dumps(results))
