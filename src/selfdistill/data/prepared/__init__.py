"""The prepared form of a data set: one file a split, and a description; packed.py for large ones."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.data.drawing import size_faults, stratified
from selfdistill.errors import UserError


class CorruptImageError(UserError, ValueError):
    """An image of a packed split cannot be decoded; the message says which."""


class PreparedError(UserError, ValueError):
    """Prepared files are missing, damaged, or in another form; the message says which and what to do."""


class SplitError(UserError, ValueError):
    """Images that a study asks for and prepared data cannot give; the message says which and what is allowed."""


@dataclass(frozen=True)
class Dataset:
    """dataset.json: name, classes, channels, size (H, W), mean and std a channel (of [0, 1] pixels,
    from the pool, or a fixed training split), a SHA-256 of the pixels and labels of each split, and its number of
    images.

    quarantined: how many published images could not be used.  shorter_side: of the training images, where these
    are packed as files and test images are the middle of what was made so; None where all are `size`.  white: the
    value of images of 16 bits that became 255; None without such images.
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
    white: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        """That of a `training` folder.  Raises PreparedError."""
        path = folder / "dataset.json"
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: entries[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise PreparedError(f"{path}: cannot be read ({reason}); prepare the data set again") from None

    def normaliser(self, device: torch.device | str) -> Callable[[Tensor], Tensor]:
        """A function from uint8 N x C x H x W to floats of mean 0 and standard deviation 1 over the
        training split, channels last in memory.  Its constants stay on the device: made again for
        each batch, they would make a GPU wait for the CPU."""
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
    """images, uint8 N x C x H x W, and labels, int64 N, of one split.  On the CPU the file is mapped into memory, not
    read: what is not used of it takes none.  Raises PreparedError."""
    path = folder / f"{split}.safetensors"
    try:
        tensors = load_file(path, device=device)
        return tensors["images"], tensors["labels"]
    except (OSError, SafetensorError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PreparedError(f"{path}: cannot be read ({reason}); prepare the data set again") from None


# ---- the images of a seed ----


@dataclass(frozen=True)
class Splits:
    """The images of one run.

    training: uint8 N x C x H x W and int64 N, on the device; None where the split is packed in `folder`.
    validation: the same.  facts: what the run's record says of both.
    """

    folder: Path
    training: tuple[Tensor, Tensor] | None
    validation: tuple[Tensor, Tensor]
    facts: dict[str, str | int]


def open_splits(
    folder: Path,
    *,
    split: str,
    training_images: int | None,
    validation_images: int | None,
    seed: int,
    device: str = "cpu",
) -> Splits:
    """The training and validation images of a seed, from the `training` folder of a prepared data set.

    split: "per_seed" draws them from the pool by this seed, "fixed" by seed 0 whatever the seed is.  A data set of
    fixed splits has "fixed" alone, and no numbers of images.  Of a pool only the drawn rows are copied, and only they
    go to the device.  Raises SplitError and PreparedError.
    """
    dataset = Dataset.read(folder)
    fixed, pool, classes = "pool" not in dataset.counts, dataset.counts.get("pool"), len(dataset.classes)
    faults = size_faults(split, training_images, validation_images, pool=pool, classes=classes, fixed=fixed)
    for fault in faults:
        raise SplitError(f"{folder}: {fault}")
    if fixed:
        packed = (folder / "train.bytes").is_file()
        training = None if packed else read_split(folder, "train", device)
        facts: dict[str, str | int] = {"split": split}
        for part, of in (("training", "train"), ("validation", "validation")):
            facts |= {part: dataset.counts[of], f"{part}_rows_sha256": dataset.pixels_sha256[of]}
        return Splits(folder, training, read_split(folder, "validation", device), facts)
    assert training_images is not None
    assert validation_images is not None
    images, labels = read_split(folder, "pool")
    rows = drawn(labels, training_images, validation_images, seed if split == "per_seed" else 0)
    facts = {"split": split}
    parts = []
    for part, which in zip(("training", "validation"), rows, strict=True):
        lacking = sorted(set(labels.unique().tolist()) - set(labels[which].tolist()))
        if lacking and part == "training":
            raise SplitError(
                f"{folder}: training_images: {training_images:,} leave class {dataset.classes[lacking[0]]!r} without "
                "one; allowed: more of them, or a pool with more images of this class"
            )
        chosen = images[which], labels[which]
        facts |= {part: len(which), f"{part}_rows_sha256": rows_sha256(*chosen)}
        parts.append((chosen[0].to(device), chosen[1].to(device)))
    return Splits(folder, parts[0], parts[1], facts)


def drawn(labels: Tensor, training: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of a pool that train, and those that validate: int64, rising, disjoint, of each class its share to
    one image; the same on every machine.

    labels: int64 N.  Raises SplitError for more images than there are.
    """
    for fault in size_faults("per_seed", training, validation, pool=len(labels), classes=None, fixed=False):
        raise SplitError(fault)
    rows = stratified(labels.numpy(), (training, validation), seed, "split")
    return torch.from_numpy(rows[0]), torch.from_numpy(rows[1])


def rows_sha256(images: Tensor, labels: Tensor) -> str:
    """Of shape, pixels and labels on the CPU, as preparing hashes a split."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy())  # type: ignore[arg-type]  # any buffer
    digest.update(labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
