"""Made data and short trainings of every method, for the tests of the engine."""

import signal

import torch

from selfdistill import methods
from selfdistill.config import Recipe
from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import build
from selfdistill.training import engine
from selfdistill.training.source import Resident

FORM = {"name": "resnet10-slim", "channels": 1, "classes": 4, "size": [8, 8], "exits": False}
DATASET = Dataset("made", ["a", "b", "c", "d"], 1, (8, 8), [0.5], [0.3], {})
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="cosine",
    milestones=[],
    decay=0.1,
    warmup_epochs=1,
    crop_padding=1,
    flip=True,
    device="cpu",
    threads=1,
    determinism="strict",
)


def made_images(count: int, seed: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose bright quarter is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, :, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 120
    return images.to(device), labels.to(device)


def made_split(count: int, seed: int, device: str = "cpu") -> engine.Split:
    return engine.Split(*made_images(count, seed, device))


# Readings that the defaults leave aside and that use the engine in another way: method, hyper-parameters
VARIANTS = {
    "byot, journal": ("byot", {"reading": "journal"}),
    "srdl, reference in training mode": ("srdl", {"reference_mode": "train"}),
    "srdl, no restart": ("srdl", {"restart": False}),
    "sd, cheap": ("sd", {"distance": "cdf", "dynamics": "posterior"}),
    "drkd, combined, student": ("drkd", {"combined": True, "swap": "student"}),
    "fitnet, two stages": ("fitnet", {"two_stages": True}),
    "snapshot, three cycles": ("snapshot", {"cycles": 3}),
    "bake, one positive": ("bake", {"positives": 1}),
}


def variant(name: str):
    """A method by name, or one of VARIANTS."""
    method, hyper = VARIANTS.get(name, (name, {}))
    return methods.load(method)(**hyper)


def train(
    name: str,
    seed: int = 0,
    *,
    method=None,
    checkpoints=None,
    interruption=None,
    progress=None,
    world=engine.ALONE,
    **changes,
):
    """A short training of a method on the made images; changes: to the recipe."""
    method = method or variant(name)
    recipe = RECIPE.model_copy(update=changes)
    form = {**FORM, "exits": "exits" in method.needs}
    device = recipe.device
    teacher = engine.frozen(build(FORM, 7).to(device)) if "teacher" in method.needs else None
    return engine.train(
        method,
        lambda s: build(form, s),
        DATASET,
        Resident(*made_images(28, 1, device)),
        made_split(16, 2, device),
        recipe,
        seed=seed,
        teacher=teacher,
        checkpoints=checkpoints,
        interruption=interruption,
        progress=progress,
        world=world,
    )


def bits(trained: engine.Trained) -> bytes:
    return b"".join(t.cpu().numpy().tobytes() for t in trained.last.state_dict().values())


class stop_after:
    """An interruption that comes after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @property
    def received(self) -> int:
        self.steps -= 1
        return signal.SIGTERM if self.steps == 0 else 0
