"""The catalogue's entry for a folder of images, made from its content."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.data.catalogue import SplitSizes
from selfdistill.data.folder import SCHEME, class_names, files_of, list_of, read_list
from selfdistill.data.images import UnusableImageError, White, commonest, each, upright
from selfdistill.data.reading import DataError
from selfdistill.data.splits import Pixels, split

SIZES = 32, 64  # of the images, which are chosen from
FEWEST = 5  # usable images of a class: one for the test, and some of four to train and to validate


def describe_folder(
    folder: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """The entry of the catalogue for a folder of images, as it stands: what YAML is made from; see `described`."""
    return described(folder, size=size, channels=channels, seed=seed)[0]


def described(
    folder: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], int]:
    """The entry of the catalogue for a folder of images, as it stands: what YAML is made from; and how many usable
    images there are to train and validate with.

    Decodes every image.  size: H, W; the larger of SIZES that the middle image reaches if None.  channels: 1 if
    all usable images are grey, else 3, if None.  20 % of the images are for the test, unless a test split is given;
    the others are the pool that a study draws from, or, where train and validation are given, fixed splits.
    DataError: what of the folder cannot be used, and what is allowed.
    """
    if size is not None and not all(side in range(4, 4097) for side in size):
        raise DataError(f"--size {' '.join(map(str, size))} is not allowed; allowed: H and W from 4 to 4096")
    folder = folder.resolve()
    content = list_of(folder)
    rows = read_list(content)
    names, parts = class_names(rows, folder), files_of(rows, folder)
    if len(names) < 2:
        raise DataError(f"{folder}: {len(names)} folders of images; allowed: two or more classes, CLASS/image.jpg")
    for name in (str(folder), *names):  # which stand in the catalogue and on pages, as names of files do not
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise DataError(f"{name!a}: the name of this folder is no UTF-8; rename it")
    usable, shapes, modes = {}, [], set()
    reasons: dict[int, list[str]] = {label: [] for label in range(len(names))}
    for part, files in parts.items():
        kept = []
        for number, image in each(files, upright, White()):
            if isinstance(image, UnusableImageError):
                reasons[int(files.labels[number])].append(str(image))
            else:
                kept.append(number)
                shapes.append(min(image.size))
                modes.add(image.mode)
        usable[part] = files.labels[sorted(kept)]
    source = "train" if "train" in usable else "all"
    counts = np.bincount(usable[source], minlength=len(names))
    fewest, needed = int(counts.argmin()), 1 if "validation" in usable else 2 if source == "train" else FEWEST
    if counts[fewest] < needed:
        few = f"{folder}: class {names[fewest]!r} has {counts[fewest]} usable images to split"
        few += f"; mostly: {commonest(reasons[fewest])}" if reasons[fewest] else ""
        raise DataError(f"{few}; allowed: {needed} or more" + ("" if counts[fewest] else ", or take its folder away"))
    sizes = split_sizes(usable, seed)
    published = {part: Pixels(labels, labels, labels) for part, labels in usable.items()}
    drawn = split(published, SplitSizes(**sizes))
    side = max([s for s in SIZES if s <= np.median(shapes)], default=min(SIZES))
    entry = {
        "title": folder.name,
        "reader": "folder",
        "licence": "not stated",
        "citation": "none",
        "files": [
            {
                "name": "files.csv",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "sources": [SCHEME + str(folder)],
            }
        ],
        "image": {"size": list(size or (side, side)), "channels": channels or (1 if modes == {"L"} else 3)},
        "classes": names,
        "split": sizes,
    }
    return entry, sum(len(rows) for part, (_, rows) in drawn.items() if part != "test")


def split_sizes(labels: dict[str, np.ndarray], seed: int) -> dict[str, int]:
    """The catalogue's `split` of these splits, by their labels."""
    if "all" in labels:
        return {"test": round(0.2 * len(labels["all"])), "seed": seed}
    if "validation" in labels:
        return {"train": len(labels["train"]), "validation": len(labels["validation"]), "seed": seed}
    return {}
