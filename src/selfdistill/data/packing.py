"""Data sets of more images than memory holds: training images as JPEG files in one file, decoded on use
(`selfdistill.data.prepared.packed`); validation and test images cropped once and kept as pixels.

Which images can be used is known only when all were decoded, and the splits are drawn after that: so each is
decoded once, made smaller, and written to a spool from which the splits are then made.  The disk holds
ImageNet's small images twice meanwhile.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from selfdistill.data.images import ImageFiles, Quarantined, UnusableImageError, White, each, packed_form, quarantined
from selfdistill.data.splits import moments_of_sums, pixels_sha256, write_tensors

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import ImageForm


@dataclass(frozen=True)
class Packed:
    """Usable images of a published split, in a spool.

    places: int64 N x 2, first byte and bytes; labels, numbers: int64 N, the latter in the published order;
    digests: of the decoded pixels; sums: N x (1 + 2 C) of pixels, of their values and of the squares.
    """

    spool: Path
    size: tuple[int, int]
    channels: int
    places: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    digests: list[bytes]
    sums: np.ndarray
    cameras: None = None  # of persons none are packed

    def select(self, rows: np.ndarray) -> "Packed":
        """Some of the images, in rising order."""
        arrays = {key: getattr(self, key)[rows] for key in ("places", "labels", "numbers", "sums")}
        return replace(self, **arrays, digests=[self.digests[i] for i in rows])

    def sha256(self) -> str:
        """Of the digests of all images and the labels."""
        return hashlib.sha256(b"".join(self.digests) + self.labels.astype("<i8").tobytes()).hexdigest()

    def fingerprints(self) -> list[bytes]:
        return self.digests

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation a channel of the stored images' pixels, from exact sums."""
        count, *sums = (int(total) for total in self.sums.sum(axis=0))
        values, squares = sums[: self.channels], sums[self.channels :]
        return moments_of_sums(count, values, squares)

    def write(self, folder: Path, part: str) -> str:
        """The files of a split; the SHA-256 of its pixels."""
        from selfdistill.data.prepared.packed import centre_cropped, write_packed

        if part == "train":
            write_packed(folder, part, self.encoded(), self.labels, self.numbers)
            return self.sha256()
        scratch = self.spool.with_suffix(".pixels")  # 7.5 GB for ImageNet's test split
        shape = len(self.labels), self.channels, *self.size
        with open(scratch, "wb") as file:  # a full disk is said here; in a mapped file it would kill this process
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape)))
        images = np.memmap(scratch, np.uint8, "r+", shape=shape)
        for place, content in zip(images, self.encoded(), strict=True):
            place[...] = centre_cropped(content, self.size, self.channels).transpose(2, 0, 1)
        tensors = {"images": images, "labels": self.labels, "indices": self.numbers}
        write_tensors(folder / f"{part}.safetensors", tensors)
        sha256 = pixels_sha256(images, self.labels)
        scratch.unlink()
        return sha256

    def encoded(self) -> Iterator[bytes]:
        with open(self.spool, "rb") as file:
            for first, size in self.places.tolist():
                yield os.pread(file.fileno(), size, first)


def spooled(
    split: str, files: ImageFiles, form: "ImageForm", shorter_side: int, spool: Path, white: White
) -> tuple[Packed, list[Quarantined]]:
    """Every usable image of a split in its packed form, and what cannot be used."""

    def pack(content: bytes, most: int | None) -> tuple[bytes, bytes, list[int]]:
        encoded, image = packed_form(content, shorter_side, form.channels, most)
        digest = hashlib.blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=32).digest()
        return encoded, digest, sums_of(image, form.channels)

    spool.parent.mkdir(parents=True, exist_ok=True)
    made: dict[int, tuple[tuple[int, int], bytes, list[int]]] = {}
    bad: dict[int, str] = {}
    first = 0
    with open(spool, "wb") as file:
        for number, result in each(files, pack, white):
            if isinstance(result, UnusableImageError):
                bad[number] = str(result)
                continue
            encoded, digest, sums = result
            file.write(encoded)
            made[number] = (first, len(encoded)), digest, sums
            first += len(encoded)
    kept, unusable = quarantined(split, files, bad)
    rows = [made[number] for number in kept.tolist()]
    at = np.array([place for place, _, _ in rows], np.int64).reshape(-1, 2)
    table = np.array([sums for _, _, sums in rows], np.int64).reshape(len(kept), 1 + 2 * form.channels)
    digests = [digest for _, digest, _ in rows]
    height, width = form.size
    return Packed(spool, (height, width), form.channels, at, files.labels[kept], kept, digests, table), unusable


def sums_of(image: Image.Image, channels: int) -> list[int]:
    """Number of pixels, sums and sums of squares a channel; a grey image has three equal channels.  From the
    histogram, which Pillow makes in C: 0.1 ms for 256 x 341 pixels, where sums of NumPy took 4.5 ms."""
    values = np.arange(256)
    counts = np.array(image.histogram(), np.int64).reshape(-1, 256)
    sums, squares = counts @ values, counts @ values**2
    return [
        image.width * image.height,
        *np.broadcast_to(sums, channels).tolist(),
        *np.broadcast_to(squares, channels).tolist(),
    ]
