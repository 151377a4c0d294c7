"""Reader of CIFAR-100 in its Python form: pickles with the pixels, the labels and their names."""

from pathlib import Path

import numpy as np

from selfdistill.data.pickles import read_batch, read_names


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 3 x 32 x 32, fine labels int64 N)."""
    return {split: read_batch(raw / split, b"fine_labels") for split in ("train", "test")}


def classes(raw: Path) -> list[str]:
    """The names of the fine labels, in the order of the labels."""
    return read_names(raw / "meta", b"fine_label_names")
