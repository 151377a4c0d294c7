"""Readers of test sets for networks of CIFAR: CIFAR-10.1 (Recht et al. 2018), two .npy files of new images,
and CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019), a tar of .npy files: the test images,
corrupted in 19 ways at 5 severities each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from selfdistill.data import archives

SEVERITIES = 5


def tests(raw: Path, entry) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(name, {images uint8 N x 3 x 32 x 32, labels int64 N, indices int64 N}) of each test set; those of a tar
    are named by their corruption, and have the severity of each image, int64 N from 1 to 5."""
    if len(entry.files) == 1:
        yield from corrupted(raw / entry.files[0].name)
    else:
        images, labels = (raw / file.name for file in entry.files)
        with open(images, "rb") as a, open(labels, "rb") as b:
            yield "test", tensors(array(a, images.name), array(b, labels.name), images.name)


def corrupted(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """A file of a corruption holds the test images at severity 1, then all of them at 2, and so on."""
    with open(path, "rb") as file:
        found = {name.rpartition("/")[2]: place for name, place in archives.tar_index(file).items()}
        if "labels.npy" not in found:
            raise ValueError(f"{path}: no labels.npy in it; fetch it again")
        labels = member(file, found.pop("labels.npy"), "labels.npy")
        for name in sorted(found):
            if name.endswith(".npy"):
                images = member(file, found[name], name)
                made = tensors(images, labels, name)
                count, rest = divmod(len(images), SEVERITIES)
                if rest:
                    raise ValueError(f"{path}: {name} has {len(images)} images; allowed: a multiple of {SEVERITIES}")
                made["severity"] = np.repeat(np.arange(1, SEVERITIES + 1), count)
                yield name.removesuffix(".npy"), made


def member(file, place: tuple[int, int], name: str) -> np.ndarray:
    first, size = place
    file.seek(first)
    content = array(file, name)
    if file.tell() > first + size:
        raise ValueError(f"{name} says that it is longer than it is")
    return content


def array(file, name: str) -> np.ndarray:
    """One .npy; none of Python objects, which are pickles."""
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ValueError(f"{name}: not the published array ({error}); fetch it again") from None


def tensors(images: np.ndarray, labels: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != (len(images),):
        found = f"{images.dtype} {images.shape} and {labels.shape}"
        raise ValueError(f"{name}: {found}; allowed: uint8 N x 32 x 32 x 3 and labels N")
    return {
        "images": images.transpose(0, 3, 1, 2),
        "labels": labels.astype(np.int64),
        "indices": np.arange(len(labels)),
    }
