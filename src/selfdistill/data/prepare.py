"""Split a data set and pack each split into one file.

Where the publisher gives a test split, it is kept whole; otherwise test is what train and
validation leave.  Train and validation are drawn stratified by class from one seed, unless both are
given, and the indices of every split are kept in its file.

A reader is a module of this package with `read(raw)` -> {"train", "test"} or {"all"}, each (images uint8
N x C x H x W, labels int64 N), or with `image_files(raw, entry)` -> the same of
`selfdistill.data.images.ImageFiles`; and perhaps with `classes(raw)`, the names in the files.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import os
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.model_selection import train_test_split

from selfdistill.data.images import Quarantined, decoded
from selfdistill.files import write_atomically

FOLDERS = {"train": "training", "validation": "training", "test": "test"}


@dataclass
class Published:
    """A data set as its reader gives it: pixels and labels of the usable images of each published split,
    and their numbers there, int64 N."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    numbers: dict[str, np.ndarray]
    quarantined: list[Quarantined] = field(default_factory=list)


def prepare(name: str, entry, raw: Path, prepared: Path) -> dict:
    """Write `prepared`/`name`/training (train, validation and dataset.json) and `prepared`/`name`/test,
    apart, so that training does not even depend on the test images, and `prepared`/`name`/report.  A split is
    a safetensors file: images uint8 N x C x H x W, labels int64 N, indices int64 N in the published order.
    Returns what report.json says."""
    reader = import_module(f"selfdistill.data.{entry.reader}")
    if hasattr(reader, "classes") and reader.classes(raw / name) != entry.classes:
        raise ValueError(f"{name}: the catalogue's `classes` are not those of the files, in their order; correct them")
    published = read_published(reader, entry, raw / name)
    known = len(entry.classes)
    found = max(int(labels.max()) + 1 for _, labels in published.splits.values())
    if found > known:
        raise ValueError(f"{name}: {found} classes in the files, {known} in the catalogue's `classes`")
    chosen = split(published.splits, entry.split.train, entry.split.validation, entry.split.seed)
    description = {"name": name, "title": entry.title, "classes": list(entry.classes)}
    hashes, counts, fingerprints = {}, {}, {}
    for part, (source, rows) in chosen.items():
        images, labels = (array[rows] for array in published.splits[source])
        tensors = {"images": images, "labels": labels, "indices": published.numbers[source][rows]}
        write_tensors(prepared / name / FOLDERS[part] / f"{part}.safetensors", tensors)
        counts[part], hashes[part] = len(labels), pixels_sha256(images, labels)
        fingerprints[part] = [hashlib.blake2b(image.tobytes()).digest() for image in images], labels.tolist()
        if part == "train":
            mean, std = moments(images)
            description |= {"channels": images.shape[1], "size": list(images.shape[2:])}
    description |= {
        "counts": counts,
        "split": dict(vars(entry.split)),
        "mean": np.round(mean, 6).tolist(),
        "std": np.round(std, 6).tolist(),
        "pixels_sha256": hashes,
    }
    write_json(prepared / name / "training" / "dataset.json", description)
    return write_report(prepared / name / "report", name, entry, published, counts, duplicates(fingerprints))


def read_published(reader, entry, raw: Path) -> Published:
    if hasattr(reader, "read"):
        splits = reader.read(raw)
        return Published(splits, {part: np.arange(len(labels)) for part, (_, labels) in splits.items()})
    published = Published({}, {})
    for part, files in reader.image_files(raw, entry).items():
        images, kept, bad = decoded(part, files, tuple(entry.image.size), entry.image.channels)
        published.splits[part] = images, files.labels[kept]
        published.numbers[part] = kept
        published.quarantined += bad
    return published


def split(published: dict, train: int, validation: int, seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """{"train" | "validation" | "test": (published split, rows int64)} from {"train", "test"}, {"all"}, or
    {"train", "validation", "test"}, where all of train and validation must be asked for."""
    source = "train" if "train" in published else "all"
    labels = published[source][1]
    count = len(labels)
    if "validation" in published:
        given = count, len(published["validation"][1])
        if given != (train, validation):
            raise ValueError(f"split: {train} + {validation} images asked for, {given[0]} + {given[1]} given")
        return {part: (part, np.arange(len(published[part][1]))) for part in ("train", "validation", "test")}
    spare = count - train - validation
    if spare < (0 if "test" in published else 1):
        raise ValueError(f"split: {train} + {validation} images asked for, {count} there")
    chosen, rest = train_test_split(np.arange(count), train_size=train, stratify=labels, random_state=seed)
    if spare:
        held_out, rest = train_test_split(rest, train_size=validation, stratify=labels[rest], random_state=seed)
    else:  # what a stratified draw leaves is stratified too
        held_out = rest
    parts = {"train": (source, np.sort(chosen)), "validation": (source, np.sort(held_out))}
    test = ("test", np.arange(len(published["test"][1]))) if "test" in published else (source, np.sort(rest))
    return parts | {"test": test}


# ---- the files ----


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, whole or not there, without a second copy in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_report(folder: Path, name: str, entry, published: Published, counts: dict, twice: list[dict]) -> dict:
    """report.json, and one line for each image that could not be used and for each that two splits share."""
    pairs = [f"{a}, {b}" for a, b in itertools.combinations(counts, 2)]
    report = {
        "name": name,
        "licence": entry.licence,
        "citation": entry.citation,
        "counts": counts,
        "published": {
            part: {"images": len(labels), "pixels_sha256": pixels_sha256(images, labels)}
            for part, (images, labels) in published.splits.items()
        },
        "quarantined": len(published.quarantined),
        "duplicates": {pair: sum(row["splits"] == pair for row in twice) for pair in pairs},
        "duplicates_with_another_label": sum(row["labels"] == "different" for row in twice),
    }
    bad = [vars(image) for image in published.quarantined]
    write_csv(folder / "quarantine.csv", ("split", "name", "reason"), bad)
    write_csv(folder / "duplicates.csv", ("splits", "first", "second", "labels"), twice)
    write_json(folder / "report.json", report)
    return report


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def duplicates(fingerprints: dict[str, tuple[list[bytes], list[int]]]) -> list[dict]:
    """Images of one split whose pixels stand in an earlier one too, by their rows in both files.

    fingerprints: of each split's images, and their labels."""
    rows = []
    for (a, (earlier, labels)), (b, (later, others)) in itertools.combinations(fingerprints.items(), 2):
        first = {pixels: i for i, pixels in reversed(list(enumerate(earlier)))}
        for j, pixels in enumerate(later):
            if pixels in first:
                i = first[pixels]
                same = "equal" if labels[i] == others[j] else "different"
                rows.append({"splits": f"{a}, {b}", "first": i, "second": j, "labels": same})
    return rows


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
