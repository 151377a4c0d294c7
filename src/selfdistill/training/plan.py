"""What chance decides of one epoch, drawn before the epoch begins.

A plan is a few tables with one row for each image, in the order in which the images come.  It depends
on the run's seed and the epoch's number alone: not on the number of processes or on what happened
before.  So a resumed run draws its epoch anew and goes on in the middle, each of several processes
takes its rows of every batch, and two methods of one seed see the same images, augmented alike, in
the same order.
"""

import numpy as np
import torch
from torch import Tensor

from selfdistill.seeds import derived_seed

Rows = dict[str, Tensor]


def draw_plan(
    labels: Tensor,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    crop_padding: int,
    views: int = 1,
    positives: int = 0,
    pairs: bool = False,
    last_batch: bool = False,
    mixing: float | None = None,
) -> dict[str, Rows]:
    """The plan of one epoch over the images with these labels, int64 N on the CPU: streams of images
    by name, each a table of N rows.

    main: every image once.  "view 1" and so on, for more `views` than one: the same images, augmented
    anew.  "positive 1" to "positive `positives`", and pair, with `pairs`: for each another image of the
    same class
    (itself where there is none).  last, with `last_batch`: the same images, augmented anew, to be served
    one batch later.
    partner, with `mixing`, the alpha of a Beta distribution: the rows of main in another order within
    each batch, with share, N, drawn once a batch, and box, N x 2 in [0, 1), likewise.
    """

    def chance(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(seed, f"{purpose}/{epoch}"))

    def stream(images: Tensor, purpose: str) -> Rows:
        return {"image": images, **draw_augmentation(len(images), crop_padding, chance(purpose))}

    images = torch.randperm(len(labels), generator=chance("order"))
    plan = {"main": stream(images, "augmentation")}
    for view in range(1, views):
        plan[f"view {view}"] = stream(images, f"augmentation of view {view}")
    for i in range(1, positives + 1):
        others = same_class(labels, images, chance(f"mate {i}"))  # what seeds derive from keeps its old name
        plan[f"positive {i}"] = stream(others, f"augmentation of mate {i}")
    if pairs:
        plan["pair"] = stream(same_class(labels, images, chance("pair")), "augmentation of pairs")
    if last_batch:
        plan["last"] = stream(images, "augmentation of the last batch")
    if mixing is not None:
        partner, share, box = draw_mixing(len(labels), batch_size, mixing, derived_seed(seed, f"mixing/{epoch}"))
        plan["partner"] = {**rows(plan["main"], partner), "share": share, "box": box}
    return plan


def draw_augmentation(count: int, crop_padding: int, chance: torch.Generator) -> Rows:
    """offsets, int64 N x 2, of crops; heads, bool N, of flips; centres, N x 2 in [0, 1), of cutouts;
    crop_seed, int64 N, for sources that crop where they decode."""
    return {
        "offsets": torch.randint(2 * crop_padding + 1, (count, 2), generator=chance),
        "heads": torch.randint(2, (count,), generator=chance).bool(),
        "centres": torch.rand(count, 2, generator=chance),
        "crop_seed": torch.randint(2**48, (count,), generator=chance),
    }


def same_class(labels: Tensor, images: Tensor, chance: torch.Generator) -> Tensor:
    """For each of `images` another one with its label, each of the others equally likely."""
    sizes = labels.bincount()
    by_class = labels.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels)) - first[labels[by_class]]  # of an image within its class
    mine = labels[images]
    others = (sizes[mine] - 1).clamp(min=1)
    ahead = 1 + (torch.rand(len(images), generator=chance, dtype=torch.float64) * others).long()
    return by_class[first[mine] + (place[images] + ahead) % sizes[mine]]


def draw_mixing(count: int, batch_size: int, alpha: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The row of each row's partner, and share and box of its batch."""
    chance = np.random.Generator(np.random.PCG64(seed))
    starts = range(0, count, batch_size)
    sizes = [min(batch_size, count - start) for start in starts]
    partner = np.concatenate([start + chance.permutation(size) for start, size in zip(starts, sizes, strict=True)])
    share = np.repeat(chance.beta(alpha, alpha, len(sizes)), sizes)
    box = np.repeat(chance.random((len(sizes), 2)), sizes, axis=0)
    return torch.from_numpy(partner), torch.from_numpy(share).float(), torch.from_numpy(box).float()


def rows(table: Rows, which: slice | Tensor) -> Rows:
    return {name: column[which] for name, column in table.items()}
