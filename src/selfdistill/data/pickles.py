"""The pickles of CIFAR: of Python 2, with pixels, labels and their names as bytes."""

import io
import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from selfdistill.data.reading import DataError, content_of, labelled
from selfdistill.outside import untrusted

ORDERS = 5_000_000  # CIFAR-100's largest pickle has some 700,000


def read_batch(path: Path, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The images of a pickle, uint8 N x 3 x 32 x 32, and the labels that it has under `key`, int64 N."""
    content = load(path)
    pixels = entry(path, content, b"data")
    if not isinstance(pixels, Stored):
        raise DataError(f"{path}: data is no array; allowed: uint8 N x 3,072")
    array = pixels.array(path)
    if array.ndim != 2 or array.shape[1] != 3 * 32 * 32:
        raise DataError(f"{path}: data {array.shape}; allowed: N x 3,072")
    # a row holds the red plane, the green and the blue one
    return labelled(path, array.reshape(-1, 3, 32, 32), entry(path, content, key))


def read_names(path: Path, key: bytes) -> list[str]:
    """The names of the classes that a pickle has under `key`."""
    names = entry(path, load(path), key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path}: {key.decode()} is no list of names; fetch it again")
    return [name.decode() for name in names]


def entry(path: Path, content: dict, key: bytes) -> Any:
    if key not in content:
        raise DataError(f"{path}: no {key.decode()} in this pickle; fetch it again")
    return content[key]


class Kind:
    """What a pickle says of the numbers of an array: b"u1" for uint8."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Of byte order and alignment, which single bytes do not have."""


class Stored:
    """What a pickle says of an array; NumPy, told by a damaged one, would build what breaks later."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, place: Path | str) -> np.ndarray:
        """uint8, in the shape that the pickle says.  DataError: it does not hold so many numbers of a byte."""
        try:
            _, shape, kind, columns_first, content = self.state
            sound = isinstance(kind, Kind) and kind.name in ("u1", b"u1") and isinstance(content, bytes)
            sound = sound and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
            sound = sound and math.prod(shape) == len(content)
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise DataError(f"{place}: data of other numbers than it says, or not of single bytes; allowed: uint8")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")


# All that these pickles need to rebuild an array, under the names that NumPy had in 2009.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: Stored(),
    ("numpy", "ndarray"): Stored,
    ("numpy", "dtype"): Kind,
}


class Texts(dict):
    """A dictionary whose keys are texts: tuples of tuples, and numbers chosen to collide, take hours to hash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, bytes | str):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}; allowed: texts")
        super().__setitem__(key, value)


class Restricted(pickle._Unpickler):
    """A pickle may name any function and have it called; this one finds those that arrays need.

    It is Python's own, not the one in C: a damaged pickle makes that one clear gigabytes for its notes.
    """

    # without the order that has memory cleared before its bytes are looked for, and sets, which Python 2 lacks,
    # and without the dictionaries of protocol 0, which these files are not of
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for order in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.FROZENSET, pickle.DICT):
        del dispatch[order[0]]
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(Texts())

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return ALLOWED[module, name]


class Counted:
    """A pickle's bytes, asked for so many times at most: one of a byte an order would take minutes and gigabytes."""

    def __init__(self, content: bytes) -> None:
        self.stream, self.left = io.BytesIO(content), ORDERS

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"of more than {ORDERS:,} orders")

    def read(self, size: int) -> bytes:
        self.count()
        if size > self.stream.getbuffer().nbytes:
            raise EOFError(f"it says that {size:,} bytes follow")
        return self.stream.read(size)

    def readinto(self, buffer: bytearray) -> int:
        self.count()
        return self.stream.readinto(buffer)

    def readline(self) -> bytes:
        self.count()
        return self.stream.readline()


def load(path: Path) -> dict:
    """The content of a pickle whose SHA-256 was verified when it was fetched; its texts are bytes, its arrays
    `Stored`."""
    stored = content_of(path)
    # of many kinds: damaged pickles make the machine that reads them raise what comes up
    with untrusted(DataError, path, "not the published pickle", "remove it and fetch it again"):
        content = Restricted(cast("BinaryIO", Counted(stored)), encoding="bytes").load()
    if not isinstance(content, dict):
        raise DataError(f"{path}: not the published pickle (no dictionary); remove it and fetch it again")
    return content
