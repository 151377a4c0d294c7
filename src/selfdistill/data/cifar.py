"""Reader of CIFAR-100 in its Python form: pickles of Python 2 with the pixels, the labels and their names."""

import pickle
from pathlib import Path

import numpy as np

# All that these pickles need to rebuild an array, under the names that NumPy had in 2009.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 3 x 32 x 32, fine labels int64 N)."""
    published = {}
    for split in ("train", "test"):
        content = load(raw / split)
        images = content[b"data"].reshape(-1, 3, 32, 32)  # a row holds the red plane, the green and the blue one
        published[split] = images, np.array(content[b"fine_labels"], np.int64)
    return published


def classes(raw: Path) -> list[str]:
    """The names of the fine labels, in the order of the labels."""
    return [name.decode() for name in load(raw / "meta")[b"fine_label_names"]]


class Restricted(pickle.Unpickler):
    """A pickle may name any function and have it called; this one finds those that arrays need."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return ALLOWED[module, name]


def load(path: Path) -> dict:
    """The content of a pickle whose SHA-256 was verified when it was fetched; its texts are bytes."""
    try:
        with open(path, "rb") as file:
            return Restricted(file, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not the published pickle ({error}); remove it and fetch it again") from None
