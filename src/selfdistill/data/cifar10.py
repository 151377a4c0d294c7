"""Reader of CIFAR-10 in its Python form: five pickles of training images, one of test images, and the names."""

from pathlib import Path

import numpy as np

from selfdistill.data.pickles import read_batch, read_names


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 3 x 32 x 32, labels int64 N); batch after batch."""
    batches = [read_batch(raw / f"data_batch_{i}", b"labels") for i in range(1, 6)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return {"train": (images, labels), "test": read_batch(raw / "test_batch", b"labels")}


def classes(raw: Path) -> list[str]:
    """The names of the labels, in their order."""
    return read_names(raw / "batches.meta", b"label_names")
