"""Readers of test sets for networks of CIFAR: CIFAR-10.1 (Recht et al. 2018), two .npy files of new images,
and CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019), a tar of .npy files: the test images,
corrupted in 19 ways at 5 severities each."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from selfdistill.data import archives
from selfdistill.data.reading import DataError, labelled

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

SEVERITIES = 5


def tests(raw: Path, entry: "DataEntry") -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(name, {images uint8 N x 3 x 32 x 32, labels int64 N, indices int64 N}) of each test set; those of a tar
    are named by their corruption, and have the severity of each image, int64 N from 1 to 5."""
    if len(entry.files) == 1:
        yield from corrupted(raw / entry.files[0].name)
    else:
        images, labels = (raw / file.name for file in entry.files)
        with open(images, "rb") as a, open(labels, "rb") as b:
            sizes = images.stat().st_size, labels.stat().st_size
            yield "test", tensors(array(a, sizes[0], str(images)), array(b, sizes[1], str(labels)), str(images))


def corrupted(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """A file of a corruption holds the test images at severity 1, then all of them at 2, and so on."""
    with open(path, "rb") as file:
        found: dict[str, tuple[int, int]] = {}
        for name, place in archives.tar_index(file).items():
            if found.setdefault(name.rpartition("/")[2], place) != place:
                raise DataError(f"{path}: two files {name.rpartition('/')[2]} in it; fetch it again")
        if "labels.npy" not in found:
            raise DataError(f"{path}: no labels.npy in it; fetch it again")
        labels = member(file, found.pop("labels.npy"), f"{path}: labels.npy")
        for name in sorted(found):
            if name.endswith(".npy"):
                images = member(file, found[name], f"{path}: {name}")
                made = tensors(images, labels, f"{path}: {name}")
                count, rest = divmod(len(images), SEVERITIES)
                if rest:
                    raise DataError(f"{path}: {name} has {len(images)} images; allowed: a multiple of {SEVERITIES}")
                made["severity"] = np.repeat(np.arange(1, SEVERITIES + 1), count)
                yield name.removesuffix(".npy"), made


def member(file: BinaryIO, place: tuple[int, int], name: str) -> np.ndarray:
    first, size = place
    file.seek(first)
    return array(file, first + size, name)


def array(file: BinaryIO, end: int, name: str) -> np.ndarray:
    """One .npy, which ends at byte `end` of the file; none of Python objects, which are pickles."""
    try:
        first = file.tell()
        if np.lib.format.read_magic(file) != (1, 0):  # the header of another may be as long as the file
            raise DataError(f"{name}: not the published array (of another version of .npy than 1.0); fetch it again")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != end - file.tell():  # before memory is asked for
            raise DataError(f"{name}: {shape} numbers in its header, more or fewer in the file; fetch it again")
        file.seek(first)
        content = np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # of many kinds: its header is a text of Python
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{name}: not the published array ({reason}); fetch it again") from None
    return content


def tensors(images: np.ndarray, labels: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{name}: images {images.dtype} {images.shape}; allowed: uint8 N x 32 x 32 x 3")
    images, labels = labelled(name, images.transpose(0, 3, 1, 2), labels)
    return {"images": images, "labels": labels, "indices": np.arange(len(labels))}
