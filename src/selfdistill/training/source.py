"""Where training images come from: all of them resident on the device, or packed on disk and decoded
by worker processes (`selfdistill.data.prepared.packed`).  A source has `labels`, int64 N on the device, and
`batches`, which serves cropped uint8 images.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from selfdistill.data.prepared import Dataset, Splits
from selfdistill.training.augment import crop, cutout, flip
from selfdistill.training.plan import Rows, rows


class Source(Protocol):
    labels: Tensor

    def batches(self, stream: Rows, wanted: list[slice], recipe) -> Iterator[Tensor]:
        """uint8 N x C x H x W for each of the `wanted` rows of a plan's stream (on the device), in order."""


class Resident:
    """images: uint8, N x C x H x W, and labels, int64 N, on one device.

    Kept channels-last, the order in which a crop gathers whole pixels and convolutions are fastest.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels

    def batches(self, stream: Rows, wanted: list[slice], recipe) -> Iterator[Tensor]:
        for which in wanted:
            yield crop(self.images[stream["image"][which]], recipe.crop_padding, stream["offsets"][which])


def open_source(splits: Splits, dataset: Dataset, device: str) -> Source:
    """The training images of a run: resident where its pixels are kept, else packed."""
    if splits.training is not None:
        return Resident(*splits.training)
    from selfdistill.data.prepared.packed import PackedSource, PackedSplit

    return PackedSource(PackedSplit.read(splits.folder, "train"), dataset.size, dataset.channels, device)


def batches(
    source: Source, plan: dict[str, Rows], wanted: list[slice], recipe, before: slice | None = None
) -> Iterator[dict[str, Tensor]]:
    """What a step is made from, batch by batch: the augmented uint8 images of each stream under its
    name, `index` and `targets` (int64 N), for a mixture `partner_targets`, `share` and `box`, and where the
    plan has a stream `last`, `last` and `last_targets` of the batch before.

    before: the rows of the batch before the first that is wanted, None if there is none.
    """
    streams = {name: stream for name, stream in plan.items() if name != "last"}
    served = [source.batches(stream, wanted, recipe) for stream in streams.values()]
    earlier = [before, *wanted][: len(wanted)]
    if "last" in plan:
        again = source.batches(plan["last"], [r for r in earlier if r is not None], recipe)
    for which, previous, *images in zip(wanted, earlier, *served, strict=True):
        batch = {
            name: augmented(pixels, stream, which, recipe)
            for (name, stream), pixels in zip(streams.items(), images, strict=True)
        }
        batch["index"] = plan["main"]["image"][which]
        batch["targets"] = source.labels[batch["index"]]
        if "partner" in plan:
            partner = rows(plan["partner"], which)
            batch |= {"partner_targets": source.labels[partner["image"]], "share": partner["share"]}
            batch["box"] = partner["box"]
        if "last" in plan and previous is not None:
            batch["last"] = augmented(next(again), plan["last"], previous, recipe)
            batch["last_targets"] = source.labels[plan["last"]["image"][previous]]
        yield batch


def augmented(images: Tensor, stream: Rows, which: slice, recipe) -> Tensor:
    """Flip and cut out a cropped uint8 batch, the rows `which` of a stream."""
    if recipe.flip:
        images = flip(images, stream["heads"][which])
    return cutout(images, recipe.cutout, stream["centres"][which]) if recipe.cutout else images
