"""Trains methods on a GPU that is not there, and says what a real one would refuse or do wrong.

What the engine would
capture as a CUDA graph is run again at every step instead of replayed, and compared with what was captured.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import made
import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fake_cuda.watch import Watch
from selfdistill import methods
from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import build
from selfdistill.training import engine
from selfdistill.training.method import Method
from selfdistill.training.source import Resident
from selfdistill.training.stopping import Interrupted

GPU = {"device": "cuda:0", "cuda_graphs": True, "precision": "bfloat16"}


@dataclass
class Found:
    """Of one training.  faults: and how often; graphs: captured steps; replays: of them; kernels, bytes: of the last
    one, a step; dead_casts: the bytes of each of its casts that nothing reads."""

    faults: dict[str, int] = field(default_factory=dict)
    graphs: int = 0
    replays: int = 0
    kernels: int = 0
    bytes: int = 0
    dead_casts: list[int] = field(default_factory=list)


class InMemory:
    """Checkpoints as the engine sees them; a file would hold its tensors on the CPU, too."""

    saved: tuple[dict, dict] | None = None

    def due(self) -> bool:
        return False

    def newest(self) -> tuple[dict, dict] | None:
        return self.saved

    def save(self, tensors: dict, state: dict, steps: int) -> None:
        self.saved = {name: tensor.cpu() for name, tensor in tensors.items()}, dict(state)


@contextmanager
def fake_gpu(classes: int, may_wait: bool = False) -> Iterator[tuple[Watch, Found]]:
    """The engine inside trains on fake tensors; what is found is complete at the end."""
    watch, mode, found = Watch(may_wait), FakeTensorMode(allow_non_fake_inputs=True), Found()

    class WatchedStep:
        """In the place of `GraphedStep`."""

        def __init__(self, step: Callable[[dict], Tensor], example: dict[str, Tensor]) -> None:
            self.step, self.inputs = step, {name: tensor.clone() for name, tensor in example.items()}
            with watch.inside("captured") as self.captured:
                step(self.inputs)
            found.graphs += 1
            found.kernels, found.bytes = self.captured.kernels, self.captured.bytes
            found.dead_casts = [cast.bytes for cast in self.captured.dead_casts]
            for _ in found.dead_casts:
                watch.fault("a cast that nothing reads")

        def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
            for name, tensor in inputs.items():
                self.inputs[name].copy_(tensor)
            with watch.inside("captured") as again:
                output = self.step(self.inputs)
            found.replays += 1
            for text in self.captured.differences(again):
                watch.fault(text)
            return output.clone()

    def draw_plan(labels: Tensor, **options: Any) -> dict:  # orders and crops are real: only labels are not there
        with _disable_current_modes():
            plan = real["draw_plan"](torch.arange(len(labels)) % classes, **options)
        return {name: {k: mode.from_tensor(column) for k, column in table.items()} for name, table in plan.items()}

    def take_step(run: engine.Run, *arguments: Any) -> Tensor:
        with watch.inside("step"):
            return real["take_step"](run, *arguments)

    def numpy(tensor: Tensor, **_: Any) -> np.ndarray:
        if not isinstance(tensor, FakeTensor):
            return real["numpy"](tensor)
        if tensor.is_cuda:
            raise TypeError("a tensor on a GPU has no numpy()")
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def converted(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """`Module.to`, whose own way is to swap tensors, which fake ones refuse."""
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    with torch.no_grad():
                        moved = tensor if tensor is None else convert(tensor)
                    if moved is not tensor:
                        is_parameter = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
        return module

    real: dict[str, Any] = {"draw_plan": engine.draw_plan, "take_step": engine.Run.take_step}
    real["numpy"] = torch.Tensor.numpy
    places = [
        (engine, "draw_plan", draw_plan),
        (engine, "GraphedStep", WatchedStep),
        (engine, "WARM_UP", 0),  # nothing is chosen or compiled here
        (engine.Run, "take_step", take_step),
        (torch.Tensor, "numpy", numpy),
        (nn.Module, "_apply", converted),
        (FakeTensorMode, "__deepcopy__", lambda self, memo: self),  # a copied network stays in this mode
        # what only a driver has
        (torch.cuda, "Stream", lambda: None),
        (torch.cuda, "synchronize", lambda: None),
        (torch.cuda, "get_rng_state", lambda _: torch.get_rng_state()),
        (torch.cuda, "set_rng_state", lambda *_: None),
        (torch.cuda, "is_bf16_supported", lambda *_: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),  # autocast would be off
    ]
    with ExitStack() as patches:
        for owner, name, value in places:
            patches.enter_context(patch.object(owner, name, value, create=True))
        patches.enter_context(mode)
        patches.enter_context(watch)
        yield watch, found
    found.faults = dict(watch.faults)


def audit(method: Method, stopped: bool = True, **recipe: Any) -> Found:
    """A training of the made images, stopped in the second epoch and gone on with from its checkpoint, or at one go.

    An epoch is of three batches and a smaller one: a step that is run as it is, one captured, one replayed.
    """
    kept, changes = InMemory(), {"epochs": 2, **GPU, **recipe}
    with fake_gpu(classes=4, may_wait="host" in method.needs) as (watch, found):
        try:
            if stopped:
                with suppress(Interrupted):
                    made.train("", method=method, checkpoints=kept, interruption=made.stop_after(6), **changes)
                method = type(method)(**{name: getattr(method, name) for name in method.about["hyper"]})
            made.train("", method=method, checkpoints=kept, **changes)
        except Exception as error:
            watch.fault(f"{type(error).__name__}: {str(error).splitlines()[0]} ({where(error)})")
    return found


def where(error: Exception) -> str:
    """The last line of the project's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


def cost(name: str) -> Found:
    """A few steps of a ResNet-18 on batches of 128 images of CIFAR-100's form."""
    method, classes, size, batch = methods.create(name), 100, 32, 128
    form = {
        "name": "resnet18",
        "channels": 3,
        "classes": classes,
        "size": [size, size],
        "exits": "exits" in method.needs,
    }
    dataset = Dataset("made", list(map(str, range(classes))), 3, (size, size), [0.5] * 3, [0.3] * 3, {})
    recipe = made.RECIPE.model_copy(update={"epochs": 1, "batch_size": batch, **GPU})
    with fake_gpu(classes) as (_, found):
        images = torch.empty(4 * batch, 3, size, size, dtype=torch.uint8, device=recipe.device)
        labels = torch.empty(4 * batch, dtype=torch.int64, device=recipe.device)
        validation = engine.Split(images[:9], labels[:9])
        engine.train(method, lambda s: build(form, s), dataset, Resident(images, labels), validation, recipe, seed=0)
    return found
