"""The training loop: one for every method.

A method names its loss terms; everything else (phases, restarts, teachers, order of the images,
augmentation, validation, logging, cost) happens here.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from selfdistill.data.prepared import Dataset
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict
from selfdistill.training.augment import random_crop, random_flip
from selfdistill.training.cost import counted_flops
from selfdistill.training.method import Method, Phase, Step
from selfdistill.training.optimiser import SGD
from selfdistill.training.schedule import learning_rate


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite; the message names term, epoch and step."""


@dataclass
class Split:
    """images N x C x H x W (uint8 as stored, float once normalised) and labels, int64 N, on one device."""

    images: Tensor
    labels: Tensor


@dataclass
class Trained:
    """last: the network after the last epoch; validation_best: its state after the first epoch of
    highest validation accuracy, `best_epoch`; history: one row an epoch; flops: of all training
    steps, 2 a multiply-add."""

    last: SectionedNetwork
    validation_best: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, float]]
    flops: int


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each use of chance, so that a change to one leaves the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6])


def train(
    method: Method,
    build: Callable[[int], SectionedNetwork],
    dataset: Dataset,
    training: Split,
    validation: Split,
    recipe,
    *,
    seed: int,
    teacher: SectionedNetwork | None = None,
) -> Trained:
    """Train the network that `build(seed)` makes.

    recipe: `selfdistill.config.Recipe`.  teacher: a trained network, if the method needs one.
    Raises NonFiniteLossError at the end of the epoch in which a term stopped being finite.
    """
    order = torch.Generator().manual_seed(derived_seed(seed, "order"))
    chance = torch.Generator().manual_seed(derived_seed(seed, "augmentation"))
    history: list[dict[str, float]] = []
    best_accuracy, best_epoch, best_state = -1.0, 0, {}
    flops, network = 0, None
    phases = method.phases(recipe.epochs)
    with tqdm(total=recipe.epochs, unit="epoch", disable=None, leave=False) as bar:
        for number, phase in enumerate(phases, start=1):
            if phase.learns_from_previous:
                teacher = frozen(network)
            if network is None or phase.restart:
                network = build(derived_seed(seed, f"weights/{number}")).to(training.images.device)
            optimiser = SGD(
                network,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
            )
            for phase_epoch in range(phase.epochs):
                epoch = len(history) + 1
                with counted_flops(network, teacher) as counted:
                    logged = [
                        run_step(method, network, teacher, optimiser, batch, phase_epoch / phase.epochs, rate)
                        for batch, rate in batches(dataset, training, recipe, phase, phase_epoch, order, chance)
                    ]
                flops += counted.total
                row = epoch_means(logged, epoch)
                accuracy = accuracy_of(network, dataset, validation)
                history.append({"epoch": epoch, "phase": number, **row, "validation_accuracy": accuracy})
                # A network that a later phase throws away is no candidate.
                if number == len(phases) and accuracy > best_accuracy:
                    best_accuracy, best_epoch = accuracy, epoch
                    best_state = {k: v.clone() for k, v in network.state_dict().items()}
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{accuracy:.1%}")
    return Trained(network, best_state, best_epoch, history, flops)


def batches(
    dataset: Dataset,
    training: Split,
    recipe,
    phase: Phase,
    phase_epoch: int,
    order: torch.Generator,
    chance: torch.Generator,
) -> Iterator[tuple[Split, float]]:
    """One epoch: every training image once, in the order that `order` draws, augmented by `chance`
    and normalised, with the learning rate of the step."""
    device = training.images.device
    drawn = torch.randperm(len(training.images), generator=order).split(recipe.batch_size)
    for number, indices in enumerate(drawn):
        images = random_crop(training.images[indices.to(device)], recipe.crop_padding, chance)
        if recipe.flip:
            images = random_flip(images, chance)
        rate = learning_rate(
            (phase_epoch + number / len(drawn)) / phase.epochs,
            peak=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup=min(recipe.warmup_epochs / phase.epochs, 0.5),
            milestones=recipe.milestones,
            decay=recipe.decay,
        )
        yield Split(dataset.normalise(images), training.labels[indices.to(device)]), rate


def run_step(
    method: Method,
    network: SectionedNetwork,
    teacher: SectionedNetwork | None,
    optimiser: SGD,
    batch: Split,
    progress: float,
    rate: float,
) -> dict[str, Tensor]:
    """One step on a normalised batch; returns loss, terms, statistics, learning rate, training accuracy
    and the batch's size by name, still on the device."""
    network.train()
    with torch.no_grad():
        taught = teacher(batch.images) if teacher is not None else None
    step = Step(batch.images, batch.labels, network(batch.images), taught, progress)
    terms = method.terms(step)
    loss = sum(terms.values())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step(rate)
    correct = (step.student.logits[-1].argmax(dim=1) == step.targets).float().mean()
    named = {"loss": loss, **terms, **step.statistics, "training_accuracy": correct}
    constants = {"learning_rate": rate, "size": len(batch.labels)}
    return {k: v.detach() for k, v in named.items()} | {k: torch.tensor(float(v)) for k, v in constants.items()}


def epoch_means(logged: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
    """Means over an epoch's images of what its steps logged, and the last learning rate.

    Raises NonFiniteLossError.
    """
    names = list(logged[0])
    # One transfer an epoch: a look at each step's loss would make a GPU wait for the CPU.
    device = logged[0]["loss"].device
    table = torch.stack([torch.stack([v.to(device) for v in step.values()]) for step in logged]).double().cpu()
    stop_if_not_finite(table, names, epoch)
    sizes = table[:, names.index("size")]
    means = dict(zip(names, ((table * sizes.unsqueeze(1)).sum(dim=0) / sizes.sum()).tolist(), strict=True))
    del means["size"]
    return {
        "learning_rate": table[-1, names.index("learning_rate")].item(),
        **{k: v for k, v in means.items() if k != "learning_rate"},
    }


def stop_if_not_finite(table: Tensor, names: list[str], epoch: int) -> None:
    """table: steps x names."""
    if torch.isfinite(table).all():
        return
    step = (~torch.isfinite(table)).any(dim=1).nonzero()[0].item()
    culprits = [n for n, v in zip(names, table[step].tolist(), strict=True) if not math.isfinite(v)]
    culprit = next((n for n in culprits if n != "loss"), "loss")
    values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, table[step].tolist(), strict=True))
    raise NonFiniteLossError(
        f"the loss term {culprit!r} is not finite at epoch {epoch}, step {step + 1} ({values}); "
        "a lower recipe.learning_rate or a smaller weight of this term is the usual mend"
    )


def frozen(network: SectionedNetwork) -> SectionedNetwork:
    """A copy that teaches: evaluation mode, no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def accuracy_of(network: SectionedNetwork, dataset: Dataset, split: Split) -> float:
    """Share of the split that the deepest exit gets right."""
    deepest = predict(network, dataset, split.images)[-1]
    return (deepest.argmax(dim=1) == split.labels).double().mean().item()
