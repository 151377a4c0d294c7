"""The prepared form of a data set: one file a split, and a description; packed.py for large ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class CorruptImageError(ValueError):
    """An image of a packed split cannot be decoded; the message says which."""


@dataclass(frozen=True)
class Dataset:
    """dataset.json: name, classes, channels, size (H, W), mean and std a channel (of [0, 1] pixels,
    from the training split), a SHA-256 of the pixels and labels of each split, and its number of images.

    quarantined: how many published images could not be used.  shorter_side: of the training images, where these
    are packed as files and test images are the middle of what was made so; None where all are `size`.
    """

    name: str
    classes: list[str]
    channels: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    pixels_sha256: dict[str, str]
    counts: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    shorter_side: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        entries = json.loads((folder / "dataset.json").read_text())
        return cls(**{name: entries[name] for name in cls.__dataclass_fields__})

    def normaliser(self, device: torch.device | str) -> Callable[[Tensor], Tensor]:
        """A function from uint8 N x C x H x W to floats of mean 0 and standard deviation 1 over the
        training split, channels last in memory.  Its constants wait on the device: made anew for each
        batch they would make a GPU wait for the CPU."""
        std = torch.tensor(self.std, device=device).view(1, -1, 1, 1)
        shift = -torch.tensor(self.mean, device=device).view(1, -1, 1, 1) / std
        scale = 1 / (255 * std)

        def normalise(images: Tensor) -> Tensor:
            floats = images.to(shift.dtype, memory_format=torch.channels_last)
            return torch.addcmul(shift, floats, scale)

        return normalise

    def normalise(self, images: Tensor) -> Tensor:
        """The same for one batch, on whatever device it is."""
        return self.normaliser(images.device)(images)


def read_split(folder: Path, split: str, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """images, uint8 N x C x H x W, and labels, int64 N, of one split."""
    tensors = load_file(folder / f"{split}.safetensors", device=device)
    return tensors["images"], tensors["labels"]
