"""Split a data set and pack each split into one file.

Where the publisher gives a test split, it is kept whole; otherwise test is what train and
validation leave.  Train and validation are drawn stratified by class from one seed, and the indices
of every split are kept in its file.
"""

import hashlib
import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from sklearn.model_selection import train_test_split

from selfdistill.files import write_atomically

FOLDERS = {"train": "training", "validation": "training", "test": "test"}


def prepare(name: str, entry, raw: Path, prepared: Path) -> dict:
    """Write `prepared`/`name`/training (train, validation and dataset.json) and `prepared`/`name`/test,
    apart, so that training does not even depend on the test images.  A split is a safetensors file:
    images uint8 N x C x H x W, labels int64 N, indices int64 N in the published order.  Returns what
    dataset.json says."""
    reader = import_module(f"selfdistill.data.{entry.reader}")
    if hasattr(reader, "classes") and reader.classes(raw / name) != entry.classes:
        raise ValueError(f"{name}: the catalogue's `classes` are not those of the files, in their order; correct them")
    published = reader.read(raw / name)
    known = len(entry.classes)
    found = max(int(labels.max()) + 1 for _, labels in published.values())
    if found > known:
        raise ValueError(f"{name}: {found} classes in the files, {known} in the catalogue's `classes`")
    splits = split(published, entry.split.train, entry.split.validation, entry.split.seed)
    for part, (images, labels, indices) in splits.items():
        tensors = {"images": images, "labels": labels, "indices": indices}
        packed = save({key: np.ascontiguousarray(value) for key, value in tensors.items()})
        write_atomically(prepared / name / FOLDERS[part] / f"{part}.safetensors", packed)
    training = splits["train"][0]
    mean, std = moments(training)
    description = {
        "name": name,
        "title": entry.title,
        "classes": list(entry.classes),
        "channels": training.shape[1],
        "size": list(training.shape[2:]),
        "counts": {part: len(labels) for part, (_, labels, _) in splits.items()},
        "split": dict(vars(entry.split)),
        "mean": np.round(mean, 6).tolist(),
        "std": np.round(std, 6).tolist(),
        "pixels_sha256": {part: pixels_sha256(images, labels) for part, (images, labels, _) in splits.items()},
    }
    text = json.dumps(description, indent=1) + "\n"
    write_atomically(prepared / name / "training" / "dataset.json", text.encode())
    return description


def split(published: dict, train: int, validation: int, seed: int) -> dict:
    """{"train" | "validation" | "test": (images, labels, indices)} from {"train", "test"} or {"all"}."""
    images, labels = published.get("train") or published["all"]
    spare = len(labels) - train - validation
    if spare < (0 if "test" in published else 1):
        raise ValueError(f"split: {train} + {validation} images asked for, {len(labels)} there")
    chosen, rest = train_test_split(np.arange(len(labels)), train_size=train, stratify=labels, random_state=seed)
    if spare:
        held_out, rest = train_test_split(rest, train_size=validation, stratify=labels[rest], random_state=seed)
    else:  # what a stratified draw leaves is stratified too
        held_out = rest
    parts = {"train": np.sort(chosen), "validation": np.sort(held_out)}
    result = {part: (images[i], labels[i], i) for part, i in parts.items()}
    if "test" in published:
        images, labels = published["test"]
        rest = np.arange(len(labels))
    rest = np.sort(rest)
    result["test"] = (images[rest], labels[rest], rest)
    return result


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation a channel, float64 C, of uint8 N x C x H x W as numbers from 0 to 1.

    From sums of integers: exact, and in a quarter of the memory that a copy in float64 would take.
    """
    count = images.size // images.shape[1]
    sums = images.sum(axis=(0, 2, 3), dtype=np.uint64).tolist()
    squares = np.square(images, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.uint64).tolist()
    mean = [s / (255 * count) for s in sums]
    std = [math.sqrt(count * q - s * s) / (255 * count) for s, q in zip(sums, squares, strict=True)]
    return np.array(mean), np.array(std)


def pixels_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """Of shape, decoded pixels and labels: equal hashes mean equal data, whatever the file format."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
