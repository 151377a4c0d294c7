"""Two processes train what one trains."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from made import VARIANTS
from numbers_worker import trained

from selfdistill import methods
from selfdistill.training import distributed, engine
from selfdistill.training.determinism import PORTABLE
from selfdistill.training.distributed import BatchNormAcrossProcesses, World
from selfdistill.training.stopping import Interrupted

HERE = Path(__file__).parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


# Methods whose training is so sensitive that a single process with two threads parts from itself with one by
# more than 1e-5 (FRSKD: 3e-5, 0.13 and 0.005 of three seeds, also without its attention term): they are
# held to that, and like all others to 1e-9 in float64.
SENSITIVE = ["frskd"]
# one with exits, one with a memory of the epoch before, one that gets the batch before again, one with a companion
CHANGING = ["byot", "pskd", "dlb", "fitnet"]


def worker(made_once, name: str, launcher: list[str], threads: str, kind: str, trained: list[str]) -> dict[str, dict]:
    """What distributed_worker.py leaves, by the method."""

    def make(folder: Path) -> None:
        done = subprocess.run(
            [
                *(sys.executable, *launcher, HERE / "distributed_worker.py"),
                *(folder / "found.json", folder / "checkpoints", kind, *trained),
            ],
            # portable, so that what the tests see does not depend on the CPU
            env={**os.environ, **PORTABLE, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return json.loads((made_once(f"distributed-{kind}-{name}", make) / "found.json").read_text())


# The four papers' methods, and of the others one of each kind of need: an average, a companion, a second view, the
# batch or the epoch before, images of one class.  The rest is tried nightly.
FEW = ["byot", "srdl", "sd", "drkd", "mean_teacher", "dml", "ddgsd", "dlb", "pskd", "bake"]
REST = [name for name in (*methods.names(), *VARIANTS) if name not in FEW]
EXACT = [*FEW, *(pytest.param(name, marks=pytest.mark.nightly) for name in REST)]


@pytest.fixture
def exact(made_once, name) -> tuple[dict, dict]:
    """A training in float64 by one process, and by two."""
    kind, names = ("few", FEW) if name in FEW else ("rest", REST)
    one = worker(made_once, f"one-{kind}", [], "1", "float64", names)
    two = worker(made_once, f"two-{kind}", TORCHRUN, "1", "float64", names)
    return one[name], two[name]


@pytest.fixture(scope="module")
def rounded(made_once) -> dict[str, dict]:
    """Trainings from three seeds in float32 by one process, by two, and by one with two threads."""
    return {
        "one": worker(made_once, "one", [], "1", "float32", methods.names()),
        "two": worker(made_once, "two", TORCHRUN, "1", "float32", methods.names()),
        "threads": worker(made_once, "threads", [], "2", "float32", SENSITIVE),
    }


def apart(some: dict, others: dict) -> float:
    """By how much two trainings' loss curves differ (of its value, where that is above 1); the middle of the seeds."""
    found = []
    for mine, theirs in zip(some["history"], others["history"], strict=True):
        pairs = [(a["loss"], b["loss"]) for a, b in zip(mine, theirs, strict=True)]
        found.append(max(abs(a - b) / max(1, abs(a)) for a, b in pairs))
    return median(found)


@pytest.mark.nightly  # the next test holds it in float64, within less
@pytest.mark.parametrize("name", methods.names())
def test_two_processes_train_what_one_trains(name, rounded):
    """The same loss curve within 1e-5 in float32, and the same work.

    Of the middle one of three seeds: in about one short run of ten the order of a sum, 1e-8, moves an
    activation across ReLU's zero, and the curves then part by 1e-5 to 1e-3, as they do when a single
    process rounds otherwise (another number of threads, another CPU).  The next test has no such luck.
    """
    alone, two = rounded["one"][name], rounded["two"][name]
    by_itself = 10 * apart(alone, rounded["threads"][name]) if name in SENSITIVE else 0
    assert apart(alone, two) <= max(1e-5, by_itself)
    assert two["flops"] == alone["flops"]
    assert two["weights"][0] == two["weights"][1]
    assert two["resumed"] == two["history"][0]


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_differ_by_rounding_alone(name, exact):
    """In float64 every term of every epoch agrees to 1e-9, accuracies counted on every image once."""
    alone, two = exact
    for mine, theirs in zip(alone["history"][0], two["history"][0], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-9, abs=1e-9)
    assert two["flops"] == alone["flops"]
    assert two["weights"][0] == two["weights"][1]


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_resume_bit_equal(name, exact):
    _, two = exact
    assert two["resumed"] == two["history"][0]


@pytest.fixture(scope="module")
def going_on(made_once) -> dict[str, dict]:
    """Trainings by one process, and stopped by some processes and taken up by others."""

    def by_processes(folder: Path, count: int, checkpoints: str, stop: int) -> dict:
        if count == 1:
            return trained(CHANGING, folder / checkpoints, stop, distributed.ALONE)
        out = folder / "histories.json"
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            + [str(part) for part in (HERE / "numbers_worker.py", out, folder / checkpoints, stop, *CHANGING)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    def make(folder: Path) -> None:
        stopped: dict[str, list] = {name: [] for name in CHANGING}
        found = {"1": by_processes(folder, 1, "one", 0)}
        assert by_processes(folder, 2, "two", 5) == stopped
        shutil.copytree(folder / "two", folder / "two again")
        assert by_processes(folder, 1, "one stopped", 5) == stopped
        found |= {"2, then 1": by_processes(folder, 1, "two", 0), "2, then 3": by_processes(folder, 3, "two again", 0)}
        found |= {"1, then 2": by_processes(folder, 2, "one stopped", 0)}
        (folder / "found.json").write_text(json.dumps(found))

    return json.loads((made_once("distributed-numbers", make) / "found.json").read_text())


@pytest.mark.parametrize("processes", ["2, then 1", "2, then 3", "1, then 2"])
@pytest.mark.parametrize("name", CHANGING)
def test_the_number_of_processes_may_change(name, processes, going_on):
    assert len(going_on["1"][name]) > 1
    for mine, theirs in zip(going_on["1"][name], going_on[processes][name], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-9, abs=1e-9)


def test_shares_drop_and_repeat_nothing():
    for count in (1, 2, 5, 28, 997):
        for size in (1, 2, 3, 8):
            rows = [i for rank in range(size) for i in range(count)[World(rank, size).share(0, count)]]
            assert rows == list(range(count))
            counts = [len(range(count)[World(rank, size).share(0, count)]) for rank in range(size)]
            assert max(counts) - min(counts) <= 1


class Asked(World):
    """Two processes, of which the other says nothing; counts the questions."""

    questions: ClassVar[list[int]] = []

    def most_of_each(self, values):
        self.questions.append(values[1])
        return values


def test_processes_ask_each_other_every_tenth_of_a_second(monkeypatch):
    """Of 40 steps of 0.04 s every second or so is followed by a question; a signal is noticed at the next one."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Asked, "questions", [])
    run = SimpleNamespace(world=Asked(0, 2), steps_done=0, ask_at=0, asked=(0, 0.0), epoch=0, step=0)
    stop = SimpleNamespace(received=0)

    def steps(count: int) -> None:
        for _ in range(count):
            clock[0] += 0.04
            run.steps_done += 1
            engine.save_or_stop(run, None, stop)

    steps(40)
    assert Asked.questions == [2] * 20
    stop.received = 15
    with pytest.raises(Interrupted, match="nothing is saved"):
        steps(2)


def test_batch_statistics_across_processes_are_batch_normalisation(monkeypatch):
    """Alone in its world, the synchronised layer is torch's own: output, gradients and running statistics."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: None)
    ours, theirs = BatchNormAcrossProcesses(5), torch.nn.BatchNorm2d(5)
    images = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    found = []
    for layer in (ours, theirs):
        x = images.clone().requires_grad_()
        for _ in range(2):
            out = layer(x)
        (out.square() * torch.arange(9.0).view(3, 3)).sum().backward()
        found.append((out.detach(), x.grad, layer.weight.grad, layer.bias.grad, *layer.state_dict().values()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_the_train_command_starts_its_processes_itself(tiny_study, tmp_path):
    """`recipe.processes: 2` needs no torchrun by hand, and stops with 75 like a single one."""
    from test_resume import cells, start, wait_for_checkpoint

    study = cells(tiny_study, tmp_path, methods=["plain", "pskd"])
    study.params(**{"recipe.processes": 2, "recipe.epochs": 2})
    process = start(study, "pskd")
    assert process.wait(timeout=600) == 0, process.communicate()
    host = json.loads((study / "results/hosts/resnet10-slim/pskd/0.json").read_text())
    assert host["processes"] == 2
    study.params(**{"recipe.epochs": 2000})
    process = start(study, "pskd")
    wait_for_checkpoint(study, "pskd", process)
    process.terminate()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 75, errors
    assert "its state is saved" in errors
