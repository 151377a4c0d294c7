"""Reader of scikit-learn's digits: 1,797 rows of 64 grey values from 0 to 16, and the label."""

import io
import warnings
from pathlib import Path

import numpy as np

from selfdistill.data.reading import DataError, gunzipped, labelled, reading


def read(raw: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"all": (images uint8 N x 1 x 8 x 8, labels int64 N)}; 16 becomes 255."""
    path = raw / "digits.csv.gz"
    with reading(path), warnings.catch_warnings(action="error"):  # of an empty file, of what is no whole number
        rows = np.loadtxt(io.BytesIO(gunzipped(path)), delimiter=",", ndmin=2)
    if (
        rows.shape[1] != 65
        or not np.isfinite(rows).all()
        or not np.array_equal(rows, np.floor(rows))
        or rows[:, :-1].min() < 0
        or rows[:, :-1].max() > 16
    ):
        raise DataError(f"{path}: rows of other than 64 whole numbers from 0 to 16 and a label; fetch it again")
    images = np.round(rows[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return {"all": labelled(path, images, rows[:, -1].astype(np.int64))}
