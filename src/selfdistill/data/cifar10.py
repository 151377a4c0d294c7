"""Reader of CIFAR-10 in its Python form: five pickles of training images, one of test images, and the names."""

from pathlib import Path

import numpy as np

from selfdistill.data.cifar import load


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 3 x 32 x 32, labels int64 N); batch after batch."""
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    published = {}
    for split, names in batches.items():
        contents = [load(raw / name) for name in names]
        images = np.concatenate([content[b"data"] for content in contents]).reshape(-1, 3, 32, 32)
        published[split] = images, np.concatenate([np.array(content[b"labels"], np.int64) for content in contents])
    return published


def classes(raw: Path) -> list[str]:
    return [name.decode() for name in load(raw / "batches.meta")[b"label_names"]]
