"""The prepared form of a data set: one packed file a split, and a description."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """dataset.json: name, classes, channels, size (H, W), mean and std a channel (of [0, 1] pixels,
    from the training split), and a SHA-256 of the pixels and labels of each split."""

    name: str
    classes: list[str]
    channels: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    pixels_sha256: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        entries = json.loads((folder / "dataset.json").read_text())
        return cls(**{name: entries[name] for name in cls.__dataclass_fields__})

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 N x C x H x W to floats of mean 0 and standard deviation 1 over the training split,
        channels last in memory."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        floats = (images.float() / 255 - mean) / std
        return floats.contiguous(memory_format=torch.channels_last)


def read_split(folder: Path, split: str, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """images, uint8 N x C x H x W, and labels, int64 N, of one split."""
    tensors = load_file(folder / f"{split}.safetensors", device=device)
    return tensors["images"], tensors["labels"]
