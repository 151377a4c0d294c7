"""What a split of images is, how it is drawn, and the file that holds it."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.model_selection import train_test_split

from selfdistill.data.images import JUNK


@dataclass(frozen=True)
class Pixels:
    """Usable images of a published split: uint8 N x C x H x W, labels and their numbers there, int64 N; where
    labels are identities, cameras, int64 N."""

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    cameras: np.ndarray | None = None

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[2:]

    def select(self, rows: np.ndarray) -> "Pixels":
        cameras = None if self.cameras is None else self.cameras[rows]
        return Pixels(self.images[rows], self.labels[rows], self.numbers[rows], cameras)

    def sha256(self) -> str:
        labels = self.labels if self.cameras is None else np.stack([self.labels, self.cameras])
        return pixels_sha256(self.images, labels)

    def fingerprints(self) -> list[bytes]:
        return [hashlib.blake2b(image.tobytes(), digest_size=32).digest() for image in self.images]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        return moments(self.images)

    def write(self, folder: Path, part: str) -> str:
        """The file of a split; the SHA-256 of its pixels."""
        tensors = {"images": self.images, "labels": self.labels, "indices": self.numbers}
        if self.cameras is not None:
            tensors |= {"identities": tensors.pop("labels"), "cameras": self.cameras}
        write_tensors(folder / f"{part}.safetensors", tensors)
        return self.sha256()


def split(published: dict, sizes) -> dict[str, tuple[str, np.ndarray]]:
    """{"train" | "validation" | "test": (published split, rows int64)} from {"train", "test"}, {"all"}, or
    {"train", "validation", "test"}, where all of train and validation must be asked for.  What is published
    beside train and validation is test, under its own name and whole, but for junk.

    published: what has `labels`; sizes: `selfdistill.config.SplitSizes`.
    """
    train, validation, seed = sizes.train, sizes.validation, sizes.seed
    source = "train" if "train" in published else "all"
    labels = published[source].labels
    count = len(labels)
    tests = {
        part: (part, np.flatnonzero(found.labels != JUNK))
        for part, found in published.items()
        if part not in (source, "validation")
    }
    if "validation" in published:
        given = count, len(published["validation"].labels)
        if given != (train, validation):
            raise ValueError(f"split: {train} + {validation} images asked for, {given[0]} + {given[1]} given")
        return {part: (part, np.arange(len(published[part].labels))) for part in ("train", "validation")} | tests
    spare = count - train - validation
    if spare < (0 if tests else 1):
        raise ValueError(f"split: {train} + {validation} images asked for, {count} there")
    chosen, rest = train_test_split(np.arange(count), train_size=train, stratify=labels, random_state=seed)
    if spare:
        held_out, rest = train_test_split(rest, train_size=validation, stratify=labels[rest], random_state=seed)
    else:  # what a stratified draw leaves is stratified too
        held_out = rest
    parts = {"train": (source, np.sort(chosen)), "validation": (source, np.sort(held_out))}
    return parts | (tests or {"test": (source, np.sort(rest))})


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation a channel, float64 C, of uint8 N x C x H x W as numbers from 0 to 1.

    From sums of integers: exact, and of some images at a time: their squares take twice their memory.
    """
    count = images.size // images.shape[1]
    some = [images[i : i + 4096] for i in range(0, len(images), 4096)]
    sums = sum(part.sum(axis=(0, 2, 3), dtype=np.uint64) for part in some).tolist()
    squares = sum(np.square(part, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.uint64) for part in some).tolist()
    return moments_of_sums(count, sums, squares)


def moments_of_sums(count: int, sums: list[int], squares: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation a channel, float64 C, as numbers from 0 to 1.

    count: pixels of a channel; sums, squares: of their values from 0 to 255 and of the squares, C each.
    """
    mean = [s / (255 * count) for s in sums]
    std = [math.sqrt(count * q - s * s) / (255 * count) for s, q in zip(sums, squares, strict=True)]
    return np.array(mean), np.array(std)


def pixels_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """Of shape, decoded pixels and labels: equal hashes mean equal data, whatever the file format."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images))
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, whole or not there, without a second copy in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
