"""Reader of the IDX files of the MNIST family: two of images, two of labels.

An IDX file (Y. LeCun's page of MNIST) begins with two zero bytes, the code of its numbers (8 for unsigned bytes),
the number of dimensions, and the size of each as four bytes, the highest first; the numbers follow.
"""

import math
import struct
from pathlib import Path

import numpy as np

from selfdistill.data.reading import DataError, content_of, labelled


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": …, "test": …}, each (images uint8 N x 1 x H x W, labels int64 N)."""
    published = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = array(raw / f"{prefix}-images-idx3-ubyte", 3)
        labels = array(raw / f"{prefix}-labels-idx1-ubyte", 1)
        published[split] = labelled(raw / f"{prefix}-images-idx3-ubyte", images[:, np.newaxis], labels)
    return published


def array(path: Path, dimensions: int) -> np.ndarray:
    """The numbers of an IDX file, uint8, of so many dimensions."""
    content = content_of(path)
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: begins with {content[:4].hex() or 'nothing'}; allowed: 000008{dimensions:02x}, an IDX file"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: {len(content) - header:,} numbers, {math.prod(shape):,} in its header; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
