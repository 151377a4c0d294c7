"""Reader of scikit-learn's digits: 1,797 rows of 64 grey values from 0 to 16, and the label."""

import gzip
from pathlib import Path

import numpy as np


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"all": (images uint8 N x 1 x 8 x 8, labels int64 N)}; 16 becomes 255."""
    with gzip.open(raw / "digits.csv.gz") as file:
        rows = np.loadtxt(file, delimiter=",")
    images = np.round(rows[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return {"all": (images, rows[:, -1].astype(np.int64))}
