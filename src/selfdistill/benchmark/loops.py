"""Three ways to take the same training steps, each as a function that takes some and returns seconds.

ours       the engine of this project, with augmentation, logging and everything else
floor      a bare loop: the same network and optimiser on tensors that are resident, normalised and never
           augmented; nothing that trains this network in PyTorch can be much faster
ordinary   what public implementations do: PIL images, torchvision's transforms, a DataLoader
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill import methods
from selfdistill.data.prepared import Dataset
from selfdistill.data.vision import import_torchvision
from selfdistill.models.trained import build
from selfdistill.training.distributed import ALONE
from selfdistill.training.engine import Run, Split, stream_for_graphs
from selfdistill.training.plan import derived_seed
from selfdistill.training.source import Resident

Loop = Callable[[], float]


@dataclass
class Task:
    """Made images to train a network on: what the three loops have in common."""

    model: str
    method: str
    recipe: object
    device: torch.device
    size: int
    channels: int
    classes: int
    steps: int
    hyper: dict[str, Any] = field(default_factory=dict)  # the method's own; the others keep their defaults

    def __post_init__(self) -> None:
        chance = torch.Generator().manual_seed(0)
        count = self.steps * self.recipe.batch_size
        shape = (count, self.channels, self.size, self.size)
        self.images = torch.randint(256, shape, generator=chance, dtype=torch.uint8)
        self.labels = torch.randint(self.classes, (count,), generator=chance)
        names = [str(i) for i in range(self.classes)]
        channels = self.channels
        self.dataset = Dataset("made", names, channels, (self.size, self.size), [0.5] * channels, [0.29] * channels, {})
        self.rule = methods.load(self.method)(**self.hyper)

    def network(self, exits: bool | None = None):
        form = {"name": self.model, "channels": self.channels, "classes": self.classes}
        wanted = "exits" in self.rule.needs if exits is None else exits
        form |= {"size": [self.size, self.size], "exits": wanted}
        return build(form, derived_seed(0, "weights"), self.recipe.channels_last).to(self.device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], None]) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def ours(task: Task) -> tuple[Loop, Run]:
    """An epoch of the engine a call; the first calls are its warm-up."""
    images, labels = task.images.to(task.device), task.labels.to(task.device)
    validation = Split(images[:2], labels[:2])  # next to nothing: the other loops have no validation
    teacher = task.network(False).eval().requires_grad_(False) if "teacher" in task.rule.needs else None
    run = Run(
        task.rule,
        lambda seed: task.network(),
        task.dataset,
        Resident(images, labels),
        validation,
        task.recipe,
        0,
        teacher,
        ALONE,
    )

    def epoch() -> None:
        for _ in run.steps():
            pass

    def loop() -> float:
        with stream_for_graphs(run):
            return timed(task.device, epoch)

    return loop, run


def floor(task: Task) -> Loop:
    """The same number of steps of a bare loop."""
    normalised = [task.dataset.normalise(b).to(task.device) for b in task.images.split(task.recipe.batch_size)]
    labels = task.labels.to(task.device).split(task.recipe.batch_size)
    return bare(task, lambda: zip(normalised, labels, strict=True))


def ordinary(task: Task, workers: int) -> Loop:
    """The same steps as the public implementations of the four papers take them: PIL images through
    torchvision's transforms and a DataLoader, PyTorch's defaults for memory order and optimiser, loss
    and accuracy read after every step.  The precision is the recipe's, so that the work is the same."""
    import_torchvision()
    from torchvision import transforms

    recipe = task.recipe
    steps = [transforms.RandomCrop(task.size, padding=recipe.crop_padding)] if recipe.crop_padding else []
    steps += [transforms.RandomHorizontalFlip()] if recipe.flip else []
    steps += [transforms.ToTensor(), transforms.Normalize(task.dataset.mean, task.dataset.std)]
    loader = torch.utils.data.DataLoader(
        PilImages(task.images.permute(0, 2, 3, 1).numpy(), task.labels.tolist(), transforms.Compose(steps)),
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=task.device.type == "cuda",
    )

    network = task.network().to(memory_format=torch.contiguous_format).train()
    optimiser = torch.optim.SGD(network.parameters(), **settings(recipe))

    def epoch() -> None:
        total = correct = 0
        for batch in loader:
            images, labels = (t.to(task.device, non_blocking=True) for t in batch)
            loss, logits = step(task, network, optimiser, images, labels)
            total += loss.item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()

    return lambda: timed(task.device, epoch)


class PilImages(torch.utils.data.Dataset):
    """Arrays, N x H x W x C uint8, as the PIL images that torchvision's data sets hand to their transforms."""

    def __init__(self, arrays: np.ndarray, labels: list[int], transform: Callable) -> None:
        self.arrays, self.labels, self.transform = arrays, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        pixels = self.arrays[index]
        return self.transform(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)), self.labels[
            index
        ]


def bare(task: Task, batches: Callable) -> Loop:
    """Forward, cross-entropy, backward, torch's fused SGD; nothing is logged or read."""
    network = task.network().train()
    optimiser = torch.optim.SGD(network.parameters(), **settings(task.recipe), fused=True)
    forward = torch.compile(network, dynamic=False) if task.recipe.compile else network

    def epoch() -> None:
        for images, labels in batches():
            step(task, forward, optimiser, images, labels)

    return lambda: timed(task.device, epoch)


def settings(recipe) -> dict:
    names = {"learning_rate": "lr", "momentum": "momentum", "nesterov": "nesterov", "weight_decay": "weight_decay"}
    return {theirs: getattr(recipe, name) for name, theirs in names.items()}


def step(task: Task, forward: Callable, optimiser, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy at every exit that the method's network has; returns loss and deepest logits."""
    with torch.autocast(task.device.type, torch.bfloat16, enabled=task.recipe.precision != "float32"):
        outputs = forward(images).logits
    loss = sum(F.cross_entropy(logits.float(), labels) for logits in outputs)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss, outputs[-1]


def matrix_ceiling(device: torch.device, precision: str, repeats: int = 10) -> float:
    """FLOP/s of the fastest of some square matrix products in this precision: what this device can do.

    Each product is asked of the matrix library and, as a 1x1 convolution, of the convolution library:
    on AMD CPUs the first, MKL, leaves half of the units unused.
    """
    dtype = getattr(torch, precision)
    rates = []
    for size in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        pixels = a.t().reshape(1, size, -1, 32).contiguous(memory_format=torch.channels_last)
        filters = b.view(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
        for product in (lambda a=a, b=b: a @ b, lambda x=pixels, w=filters: F.conv2d(x, w)):
            with torch.no_grad():
                rates += [2 * size**3 / timed(device, product) for _ in range(repeats)]
    return max(rates)
