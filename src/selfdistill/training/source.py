"""Where training images come from: all of them resident on the device, or packed on disk and decoded
by worker processes (`selfdistill.data.prepared.packed`).  A source has `labels`, int64 N on the device, and
`batches`, which serves cropped uint8 images.
"""

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from selfdistill.data.prepared import Dataset, Splits
from selfdistill.training.augment import crop, cutout, flip
from selfdistill.training.plan import Rows
from selfdistill.training.policy import apply_policy, make_policy

# columns of a stream that say which image a row is and how it is augmented
AUGMENTATION = frozenset({"image", "offsets", "flip_mask", "centres", "crop_seed", "policy"})


class Source(Protocol):
    labels: Tensor

    def batches(self, stream: Rows, wanted: list[slice], recipe: Any) -> Iterator[Tensor]:
        """uint8 N x C x H x W for each of the `wanted` rows of a plan's stream (on the device), in order."""


class Resident:
    """images: uint8, N x C x H x W, and labels, int64 N, on one device.

    Kept channels-last, the order in which a crop gathers whole pixels and convolutions are fastest.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels

    def batches(self, stream: Rows, wanted: list[slice], recipe: Any) -> Iterator[Tensor]:
        for which in wanted:
            yield crop(self.images[stream["image"][which]], recipe.crop_padding, stream["offsets"][which])


def open_source(splits: Splits, dataset: Dataset, device: str) -> Source:
    """The training images of a run: resident where its pixels are kept, else packed."""
    if splits.training is not None:
        return Resident(*splits.training)
    from selfdistill.data.prepared.packed import PackedSource, PackedSplit

    return PackedSource(PackedSplit.read(splits.folder, "train"), dataset.size, dataset.channels, device)


def batches(
    source: Source,
    plan: dict[str, Rows],
    wanted: list[slice],
    recipe: Any,
    before: slice | None = None,
    late: Collection[str] = (),
) -> Iterator[dict[str, Tensor]]:
    """What a step is made from, batch by batch: the augmented uint8 images of each stream under its name; `index` and
    `targets`, int64 N, of main; and of every other stream, under `stream/column`, what its rows hold beside image and
    augmentation.

    late: streams that are served one batch late, with the rows of the batch before.  before: the rows of the batch
    before the first wanted one, None if there is none.
    """
    earlier = [before, *wanted][: len(wanted)]
    due = {name: earlier if name in late else wanted for name in plan}
    served = {
        name: source.batches(stream, [which for which in due[name] if which is not None], recipe)
        for name, stream in plan.items()
    }
    for i, which in enumerate(wanted):
        batch = {}
        for name, stream in plan.items():
            if (place := due[name][i]) is None:
                continue
            batch[name] = augmented(next(served[name]), stream, place, recipe)
            if name != "main":
                more = stream.keys() - AUGMENTATION
                batch |= {f"{name}/{column}": stream[column][place] for column in sorted(more)}
        yield {**batch, "index": plan["main"]["image"][which], "targets": plan["main"]["targets"][which]}
    for name, rest in served.items():  # a source may have something to put away after the last batch
        for _ in rest:
            raise ValueError(f"the source served more batches of {name!r} than were wanted")


def augmented(images: Tensor, stream: Rows, which: slice, recipe: Any) -> Tensor:
    """Flip a cropped uint8 batch, do what the policy has drawn, and cut out; the rows `which` of a stream."""
    if recipe.flip:
        images = flip(images, stream["flip_mask"][which])
    if policy := make_policy(recipe):
        images = apply_policy(policy, images, stream["policy"][which])
    return cutout(images, recipe.cutout, stream["centres"][which]) if recipe.cutout else images
