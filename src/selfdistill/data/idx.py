"""Reader of the IDX files of the MNIST family: two of images, two of labels."""

from pathlib import Path

import numpy as np

from selfdistill.data.vision import import_torchvision


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 1 x H x W, labels int64 N)."""
    mnist = import_torchvision().datasets.mnist
    return {
        split: (
            mnist.read_image_file(raw / f"{prefix}-images-idx3-ubyte").numpy()[:, np.newaxis],
            mnist.read_label_file(raw / f"{prefix}-labels-idx1-ubyte").numpy(),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
