"""What a split of images is, how it is drawn, and the file that holds it."""

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from selfdistill.data.drawing import stratified
from selfdistill.data.images import JUNK
from selfdistill.data.reading import DataError

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from collections.abc import Mapping

    from selfdistill.data.catalogue import SplitSizes


class Labelled(Protocol):
    """labels: int64 N.  cameras: int64 N, of persons to be found again."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def cameras(self) -> np.ndarray | None: ...


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
        """Some of the images, in rising order; all of them without a copy: a pool may have gigabytes."""
        if len(rows) == len(self.labels):
            return self
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


def split(published: "Mapping[str, Labelled]", sizes: "SplitSizes") -> dict[str, tuple[str, np.ndarray]]:
    """{"pool" | "train" | "validation" | "test": (published split, rows int64, rising)} from {"train", "test"},
    {"all"}, or {"train", "validation", "test"}, where all of train and validation must be asked for.  What is published
    beside train and validation is test, under its own name and whole, without junk.

    DataError: sizes that these images do not have, or that do not fit what is published.
    """
    source = "train" if "train" in published else "all"
    labels = published[source].labels
    count, everything = len(labels), np.arange(len(labels))
    tests = {
        part: (part, np.flatnonzero(found.labels != JUNK))
        for part, found in published.items()
        if part not in (source, "validation")
    }
    if tests and sizes.test is not None:
        raise DataError(f"split.test: {sizes.test} is not allowed beside published test images; take it out")
    if sizes.train is None or sizes.validation is None:
        fixed = "write split: {train, validation, seed}"
        if "validation" in published:
            raise DataError(f"split: the files give a validation split; {fixed} with the numbers of its images")
        if any(found.cameras is not None for found in published.values()):
            raise DataError(f"split: persons to be found again have no pool; {fixed}")
        if tests:
            return {"pool": (source, everything)} | tests
        if sizes.test is None or sizes.test >= count:
            raise DataError(f"split.test: {sizes.test}; allowed: how many of the {count:,} images are for the test")
        (test,) = stratified(labels, [sizes.test], sizes.seed, "test")
        return {"pool": (source, np.setdiff1d(everything, test)), "test": (source, test)}
    train, validation = sizes.train, sizes.validation
    if "validation" in published:
        given = count, len(published["validation"].labels)
        if given != (train, validation):
            raise DataError(f"split: {train} + {validation} images asked for, {given[0]} + {given[1]} given")
        return {part: (part, np.arange(len(published[part].labels))) for part in ("train", "validation")} | tests
    spare = count - train - validation
    if spare < (0 if tests else 1):
        raise DataError(f"split: {train} + {validation} images asked for, {count} there")
    chosen, held_out = stratified(labels, [train, validation], sizes.seed, "split")
    parts = {"train": (source, chosen), "validation": (source, held_out)}
    return parts | (tests or {"test": (source, np.setdiff1d(everything, np.concatenate([chosen, held_out])))})


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
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, whole or not there, without a second copy in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, partial)
        except SafetensorError as error:  # of a full disk it tells the number in its words
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
