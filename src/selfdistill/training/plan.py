"""What is random in one epoch, drawn before the epoch begins.

A plan is a few tables with one row for each image, in the order in which the images come.  It depends
on the run's seed and the epoch's number alone: not on the number of processes or on what happened
before.  So a resumed run draws its epoch again and goes on in the middle, each of several processes
takes its rows of every batch, and two methods of one seed see the same images, augmented in the same
way and in the same order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfdistill.seeds import derived_seed
from selfdistill.training.policy import Policy

Rows = dict[str, Tensor]


@dataclass
class Draw:
    """What the streams of one epoch are drawn from.

    labels: int64 N on the CPU.  images: int64 N, the order in which they come.  main: every image once, in this
    order: the stream that every method has.
    """

    labels: Tensor
    seed: int
    epoch: int
    batch_size: int
    crop_padding: int
    policy: Policy | None = None

    def __post_init__(self) -> None:
        self.images = torch.randperm(len(self.labels), generator=self.generator("order"))
        self.main = {**self.stream(self.images, "augmentation"), "targets": self.labels[self.images]}

    def generator(self, purpose: str) -> torch.Generator:
        """One of its own for each purpose and epoch, so that what another stream draws changes nothing here."""
        return torch.Generator().manual_seed(derived_seed(self.seed, f"{purpose}/{self.epoch}"))

    def stream(self, images: Tensor, purpose: str) -> Rows:
        """The rows of these images, int64 N, augmented by draws of this purpose; with a policy a column `policy`, what
        it draws for each row from a generator of its own, so that it changes no crop, flip or cutout."""
        table = {"image": images, **draw_augmentation(len(images), self.crop_padding, self.generator(purpose))}
        if self.policy:
            table["policy"] = self.policy.draw(len(images), self.generator(f"policy, {purpose}"))
        return table


class Streams(Protocol):
    """What draws streams of its own (`selfdistill.training.needs.Need`)."""

    def streams(self, draw: Draw) -> dict[str, Rows]: ...


def draw_plan(
    labels: Tensor,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    crop_padding: int,
    policy: Policy | None = None,
    needs: Iterable[Streams] = (),
) -> dict[str, Rows]:
    """The plan of one epoch over the images with these labels, int64 N on the CPU: streams of images by name, "main"
    and those of the needs, each a table of N rows.

    Of each row: `image`, int64; what `draw_augmentation` draws for it; and what else a step is to get of it, as the
    `targets` of main, int64.
    """
    draw = Draw(labels, seed, epoch, batch_size, crop_padding, policy)
    plan = {"main": draw.main}
    for need in needs:
        plan |= need.streams(draw)
    return plan


def draw_augmentation(count: int, crop_padding: int, generator: torch.Generator) -> Rows:
    """offsets, int64 N x 2, of crops; flip_mask, bool N; centres, N x 2 in [0, 1), of cutouts; crop_seed, int64 N,
    for sources that crop where they decode."""
    return {
        "offsets": torch.randint(2 * crop_padding + 1, (count, 2), generator=generator),
        "flip_mask": torch.randint(2, (count,), generator=generator).bool(),
        "centres": torch.rand(count, 2, generator=generator),
        "crop_seed": torch.randint(2**48, (count,), generator=generator),
    }


def same_class(labels: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """For each of `images` another one with its label, each of the others equally likely; itself where it is alone."""
    sizes = labels.bincount()
    by_class = labels.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels)) - first[labels[by_class]]  # of an image within its class
    mine = labels[images]
    others = (sizes[mine] - 1).clamp(min=1)
    ahead = 1 + (torch.rand(len(images), generator=generator, dtype=torch.float64) * others).long()
    return by_class[first[mine] + (place[images] + ahead) % sizes[mine]]


def rows(table: Rows, which: slice | Tensor) -> Rows:
    return {name: column[which] for name, column in table.items()}


def on_device(plan: dict[str, Rows], device: torch.device) -> dict[str, Rows]:
    """A plan in one transfer a column, none a step; policies stay on the CPU, which reads them."""
    return {
        name: {k: v if k == "policy" else v.to(device, non_blocking=True) for k, v in table.items()}
        for name, table in plan.items()
    }
