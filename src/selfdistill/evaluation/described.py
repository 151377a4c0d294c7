"""The data set that a run says it was trained on."""

import math
from pathlib import Path

from selfdistill.data.prepared import Dataset
from selfdistill.models.trained import WeightsError


def dataset_of(record: dict, place: Path) -> Dataset:
    """From what a run.json holds.  WeightsError: its first key that is not as training writes it."""
    told, form = record.get("dataset"), record.get("network")
    told, form = (part if isinstance(part, dict) else {} for part in (told, form))
    classes, channels, size = (told.get(key) for key in ("classes", "channels", "size"))
    hashes, counts, side, white = (told.get(key) for key in ("pixels_sha256", "counts", "shorter_side", "white"))
    fits = {
        "name": isinstance(told.get("name"), str),
        "classes": isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes),
        "channels": channels in (1, 3) and type(channels) is int,
        "size": isinstance(size, list) and len(size) == 2 and all(whole(side, 1, 4096) for side in size),
        "mean": numbers(told.get("mean"), channels),
        "std": numbers(told.get("std"), channels) and all(value > 0 for value in told["std"]),
        "pixels_sha256": isinstance(hashes, dict),
        "counts": counts is None or isinstance(counts, dict),
        "shorter_side": side is None or whole(side, 1, 4096),
        "white": white is None or whole(white, 1, 2**16 - 1),
        "quarantined": whole(told.get("quarantined", 0), 0, 2**63),
    }
    faults = [f"dataset.{key}" for key, fit in fits.items() if not fit]
    faults += [f"dataset.{key}" for key in told if key not in fits]
    built = [form.get(key) for key in ("classes", "channels", "size")]
    if not faults and built != [len(classes or ()), channels, size]:
        faults.append("network and dataset of different images or classes")
    if faults:
        raise WeightsError(f"{place}: not what training writes ({faults[0]}); name the folder of a trained run")
    return Dataset(**told)


def whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def numbers(value: object, count: object) -> bool:
    """Whether it is a list of so many finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) in (int, float) and math.isfinite(number) for number in value)
    )
