"""Reader of a folder of images: CLASS/image.jpg, or train/CLASS/image.jpg beside test/ and perhaps validation/.

The catalogue gives the SHA-256 of a list of all its files, each with its bytes and its SHA-256.  That list
is what `fetch` makes and verifies; the images stay where they are, and each is compared with the list when
it is read.  Everything goes by the names' order, nothing by the file system's.  Names that begin with a dot
are left out, and so are links to folders.
"""

import csv
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from selfdistill.data.images import ImageFiles, UnusableImageError, each, upright
from selfdistill.data.splits import Pixels, split

SCHEME = "folder://"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
SIZES = 32, 64  # of the images that `describe_folder` chooses from


def image_files(raw: Path, entry) -> dict[str, ImageFiles]:
    """{"all"} or the given splits; classes in the order of their names.  A folder with train and validation
    alone gives its validation images as the test split, and validation is cut from train."""
    (listed,) = entry.files
    rows = read_list((raw / listed.name).read_bytes())
    return files_of(rows, raw.parent.parent / listed.sources[0].removeprefix(SCHEME))


def classes(raw: Path) -> list[str]:
    """The names of the classes' folders, in their order."""
    (listed,) = raw.glob("*.csv")
    return class_names(read_list(listed.read_bytes()))


# ---- the list of files ----


def list_of(folder: Path) -> bytes:
    """CSV of path, bytes and SHA-256 of every file below class folders, in the order of the paths."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one that holds CLASS/image.jpg or train/CLASS/image.jpg")
    rows = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.parent != folder:
                try:
                    content = path.read_bytes() if path.is_file() else None
                except OSError as error:
                    raise ValueError(f"{path}: {error.strerror}; make it readable, or take it away") from None
                if content is None:
                    raise ValueError(f"{path}: no file that can be read; take it away")
                rows.append((path.relative_to(folder).as_posix(), len(content), hashlib.sha256(content).hexdigest()))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "bytes", "sha256"), *sorted(rows)])
    return text.getvalue().encode(errors="surrogateescape")


def read_list(content: bytes) -> list[tuple[str, str]]:
    """[(path, SHA-256)]"""
    rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    return [(path, sha256) for path, _, sha256 in rows][1:]


def given_splits(rows: list[tuple[str, str]]) -> bool:
    tops = {path.split("/")[0] for path, _ in rows}
    return "train" in {SPLITS.get(top) for top in tops} and tops <= set(SPLITS) and len(tops) > 1


def class_names(rows: list[tuple[str, str]]) -> list[str]:
    level = 1 if given_splits(rows) else 0
    return sorted({parts[level] for path, _ in rows if len(parts := path.split("/")) > level + 1})


def files_of(rows: list[tuple[str, str]], folder: Path) -> dict[str, ImageFiles]:
    names = class_names(rows)
    number = {name: i for i, name in enumerate(names)}
    given = given_splits(rows)
    found: dict[str, list] = {}
    for path, sha256 in rows:
        parts = path.split("/")
        split, parts = (SPLITS[parts[0]], parts[1:]) if given else ("all", parts)
        if len(parts) < 2:
            raise ValueError(f"{folder / path}: an image outside the classes' folders; allowed: CLASS/image.jpg")
        found.setdefault(split, []).append((path, sha256, number[parts[0]]))
    if given and "test" not in found:
        found["test"] = found.pop("validation")
    for split, images in found.items():
        lacking = set(range(len(names))) - {label for *_, label in images}
        if lacking and split in ("train", "all"):
            raise ValueError(f"{folder}: class {names[min(lacking)]!r} has no training images; take its folder away")
    return {split: split_of(images, folder) for split, images in found.items()}


def split_of(images: list[tuple[str, str, int]], folder: Path) -> ImageFiles:
    def read(i: int) -> bytes:
        path, sha256, _ = images[i]
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            raise ValueError(f"{folder / path}: {error.strerror}; fetch the data set again") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{folder / path}: it has changed since the folder was described; describe it anew")
        return content

    labels = np.array([label for *_, label in images], np.int64)
    return ImageFiles([path for path, *_ in images], labels, read)


# ---- a new entry ----


def describe_folder(
    folder: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, seed: int = 0
) -> dict:
    """The entry of the catalogue for a folder of images, as it stands: what YAML is made from.

    Decodes every image.  size: H, W; the larger of SIZES that the middle image reaches if None.  channels: 1 if
    all usable images are grey, else 3, if None.  60 % of the images are for training, 20 % for validation,
    the rest for the test; where splits are given, 10 % of train are for validation unless that is given too.
    ValueError: what of the folder cannot be used, and what is allowed.
    """
    from selfdistill.config import SplitSizes

    folder = folder.resolve()
    content = list_of(folder)
    rows = read_list(content)
    names, parts = class_names(rows), files_of(rows, folder)
    if len(names) < 2:
        raise ValueError(f"{folder}: {len(names)} folders of images; allowed: two or more classes, CLASS/image.jpg")
    usable, shapes, modes = {}, [], set()
    for part, files in parts.items():
        kept = []
        for number, image in enumerate(each(files, upright)):
            if not isinstance(image, UnusableImageError):
                kept.append(number)
                shapes.append(min(image.size))
                modes.add(image.mode)
        usable[part] = files.labels[kept]
    train, validation = sizes(usable, len(names))
    try:
        published = {part: Pixels(labels, labels, labels) for part, labels in usable.items()}
        split(published, SplitSizes(train=train, validation=validation, seed=seed))
    except ValueError:
        counts = np.bincount(usable.get("train", usable.get("all")), minlength=len(names))
        fewest = int(counts.argmin())
        raise ValueError(
            f"{folder}: class {names[fewest]!r} has {counts[fewest]} usable images to split; allowed: about 10 or more"
        ) from None
    side = max([s for s in SIZES if s <= np.median(shapes)], default=min(SIZES))
    return {
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
        "split": {"train": train, "validation": validation, "seed": seed},
    }


def sizes(labels: dict[str, np.ndarray], classes: int) -> tuple[int, int]:
    """How many images are for training, and how many for validation."""
    if "all" in labels:
        count = len(labels["all"])
        return round(0.6 * count), round(0.2 * count)
    if "validation" in labels:
        return len(labels["train"]), len(labels["validation"])
    validation = max(round(0.1 * len(labels["train"])), classes)
    return len(labels["train"]) - validation, validation
