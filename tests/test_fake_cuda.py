"""What a real GPU would refuse or do wrong, found without one: trainings on fake tensors that lie on "cuda".

Nothing is computed: each tensor has a device, a shape and a dtype.  Each operation is looked at; see `fake_cuda`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made import VARIANTS

from selfdistill import methods

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of PyTorch has a driver of its own"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, to build the stand-in for CUDA's driver"),
]
# what is planted (`fake_cuda.planted`), and what is to be found of it
FAULTS = {
    "number baked in": "was captured, it is",
    "host wait": "waits for the GPU: _local_scalar_dense",
    "data-dependent mask": "waits for the GPU: index",
    "host tensor": "a tensor on the CPU: mul",
    "state rebound": "another took its place",
    "memory of a need rebound": "another took its place",
    "number copied to the GPU": "was captured, it is",
    "item of the state rebound": "StateError",
    "dead cast": "a cast that nothing reads",
    "dead cast behind a view": "a cast that nothing reads",
    "raises if strict": "raises if strict: cumsum",
    "raises if strict, backward": "raises if strict: _adaptive_avg_pool2d_backward",
    "index on the host": "a tensor on the CPU: index",
    "mixed devices": "FakeTensorDeviceMismatchError",
    "draw": "draws: native_dropout",
    "solver": "a solver's library",
    "outside of autocast": "outside of autocast: convolution",
}
# a training step of a ResNet-18 on 128 images of 3 x 32 x 32 in bfloat16: kernels, and bytes that they read and write
CEILINGS = {"plain": (225, 3120e6), "byot": (480, 4150e6)}
RECIPES = {
    "adamw": {"optimiser": "adamw", "decay_exempt": True},
    "other labels, squares cut out, an epoch kept": {"label_noise": 0.3, "cutout": 2, "keep_epochs": [2]},
}


def audited(cells: dict[str, list], folder: Path) -> dict[str, dict]:
    """What a process with the stand-in finds (`fake_cuda.__main__`)."""
    found = folder / "found.json"
    python_path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fake_cuda", str(found)],
        input=json.dumps(cells),
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


def trainings() -> dict[str, list]:
    """Every method as it is and as the other tests vary it, for two epochs.

    For three where there are three cycles, or where a memory of the epoch before is empty in the first."""
    cells = [(name, name, {}, {}) for name in methods.names()]
    cells += [(label, name, hyper, {}) for label, (name, hyper) in VARIANTS.items()]
    cells += [(label, "plain", {}, recipe) for label, recipe in RECIPES.items()]
    found = {}
    for label, name, hyper, recipe in cells:
        longer = label == "snapshot, three cycles" or "memory" in methods.executed(name)["needs"]
        found[label] = ["method", name, hyper, {**recipe, "epochs": 3 if longer else 2}]
    return found


def choices() -> dict[str, list]:
    """Every other choice of each hyper-parameter that a method has, at one go."""
    cells = {}
    for name in methods.names():
        for key, spec in methods.executed(name)["hyper"].items():
            choices = spec.get("choices") or ([] if "allowed" in spec else [False, True])
            for other in ({key: choice} for choice in choices if choice != spec["default"]):
                if (name, other) not in VARIANTS.values():
                    cells[f"{name}, {key}: {other[key]}"] = ["method", name, other, {"stopped": False}]
    return cells


@pytest.mark.parametrize("part", ["first half", "second half", pytest.param("choices", marks=pytest.mark.nightly)])
def test_every_method_trains_on_a_gpu(part, tmp_path):
    """All phases, restarts and evaluations, and once stopped and resumed."""
    halves = {"first half": slice(0, None, 2), "second half": slice(1, None, 2)}
    cells = choices() if part == "choices" else dict(list(trainings().items())[halves[part]])
    found = audited(cells, tmp_path)
    assert found.keys() == cells.keys()
    assert {label: f["faults"] for label, f in found.items() if f["faults"]} == {}
    replayed = {label for label, f in found.items() if f["graphs"] and f["replays"]}
    eager = {label for label, (_, name, hyper, _) in cells.items() if "host" in methods.create(name, **hyper).needs}
    assert replayed == cells.keys() - eager


@pytest.fixture(scope="session")
def planted(made_once) -> dict[str, dict]:
    """What is found of methods with a planted fault each."""
    folder = made_once("planted", lambda folder: audited({f: ["planted", f] for f in ("nothing", *FAULTS)}, folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(planted, fault):
    assert any(FAULTS[fault] in text for text in planted[fault]["faults"]), planted[fault]


def test_a_clean_method_is_clean(planted):
    assert planted["nothing"]["faults"] == {}
    assert planted["nothing"]["replays"]


def test_a_step_costs_no_more_than_it_did(tmp_path):
    found = audited({name: ["cost", name] for name in CEILINGS}, tmp_path)
    for name, (kernels, size) in CEILINGS.items():
        assert (found[name]["faults"], found[name]["dead_casts"]) == ({}, [])
        assert 0.9 * kernels < found[name]["kernels"] <= kernels
        assert 0.9 * size < found[name]["bytes"] <= size


def test_what_raises_if_strict_is_torchs_own_list():
    from fake_cuda.watch import RAISES_IF_STRICT

    text = torch.use_deterministic_algorithms.__doc__
    listed = text.split(":class:`RuntimeError` when ``mode=True``:")[1].split("In addition")[0]
    assert set(re.findall(r"\* :\w+:`(.+?)`", listed)) == RAISES_IF_STRICT.keys()
