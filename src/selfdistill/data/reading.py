"""What readers of published files have in common: they check what they read, and say in one line what is wrong."""

import errno
import gzip
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.data.archives import RATIO, ArchiveError
from selfdistill.errors import UserError
from selfdistill.outside import OutsideError, reason_of, regular_bytes

MOST = 2**31  # bytes of a file that is read at once; EMNIST's largest has 550 MB
LARGEST_MEMBER, LARGEST_TEXT = 2**28, 2**24  # bytes of a photograph and of a list in an archive
NO_FAULTS_OF_DISKS = (None, errno.EINVAL, errno.EOVERFLOW)  # but of places that a damaged header gives


class DataError(UserError, ValueError):
    """Files of a data set that are not what they should be, or that its entry does not fit; the message says which,
    why, and what is allowed."""


@contextmanager
def reading(place: Path | str) -> Iterator[None]:
    """Damaged files make the libraries that read them raise nearly anything: all of it becomes one DataError.

    Errors of the disk (OSError with a number) and those that already say what is wrong pass.
    """
    try:
        yield
    except (ArchiveError, OutsideError) as error:
        raise DataError(f"{place}: {error}; fetch it again") from None
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{place}: {reason_of(error)}; fetch it again") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in NO_FAULTS_OF_DISKS:
            raise
        raise DataError(f"{place}: not as it is published ({reason_of(error)}); fetch it again") from error


def content_of(path: Path, most: int = MOST) -> bytes:
    """A published file, whole."""
    with reading(path):
        return regular_bytes(path, most)


def gunzipped(path: Path) -> bytes:
    """What a .gz unpacks to, which is no more than RATIO allows."""
    with reading(path):
        packed = io.BytesIO(content_of(path))
        most = RATIO * len(packed.getbuffer()) + 2**20
        with gzip.open(packed) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path}: it unpacks to more than {most:,} bytes; fetch it again")
    return content


def labelled(place: Path | str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 N x C x H x W, and their labels, int64 N from 0; DataError for anything else.

    labels: an array or a list.  Numbers with a fraction are refused, not cut: they are not classes.  So is whatever
    else stands in a list, before NumPy makes an array of it: a few lists of lists stand for thousands of millions.
    """
    if isinstance(labels, list | tuple) and not all(isinstance(label, int | float) for label in labels):
        raise DataError(f"{place}: labels that are no numbers; allowed: whole numbers from 0")
    images, given = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{place}: images {images.dtype} {images.shape}; allowed: uint8 N x C x H x W")
    if given.shape != (len(images),):
        found = f"{len(given):,} labels" if given.ndim == 1 else f"labels {given.shape}"
        raise DataError(f"{place}: {len(images):,} images and {found}; allowed: one label for each image")
    if not images.size:
        raise DataError(f"{place}: {images.shape} pixels; allowed: at least one image of one pixel")
    if given.dtype.kind not in "iu":
        raise DataError(f"{place}: labels of type {given.dtype}; allowed: whole numbers from 0")
    if given.min() < 0:
        raise DataError(f"{place}: label {given.min()} of image {given.argmin()}; allowed: whole numbers from 0")
    return images, given.astype(np.int64)


def member_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int = LARGEST_MEMBER) -> bytes:
    """The content of a file in a zip archive, whole and with the CRC that the archive gives."""
    with reading(f"{archive.filename}: {member.filename}"):
        if member.file_size > most:
            raise ArchiveError(f"it unpacks to {member.file_size:,} bytes; allowed: {most:,}")
        return archive.read(member)


def unambiguous(names: list[tuple[str, str]]) -> list[str]:
    """Words of (word, WordNet number), with the number where a word alone would mean two classes."""
    words = [word for word, _ in names]
    return [word if words.count(word) == 1 else f"{word} ({wnid})" for word, wnid in names]
