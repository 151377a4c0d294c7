"""Reader of a folder of images: CLASS/image.jpg, or train/CLASS/image.jpg beside test/ and perhaps validation/.

The catalogue gives the SHA-256 of a list of all its files, each with its bytes and its SHA-256.  That list
is what `fetch` makes and verifies; the images stay where they are, and each is compared with the list when
it is read.  Everything goes by the names' order, nothing by the file system's.  Names that begin with a dot
are left out, and so are links to folders, and files outside the classes' folders.  What is no file that could
be read, as a link to nothing, is listed as such, and is no image.
"""

import csv
import errno
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfdistill.data.images import ImageFiles, UnusableImageError, csv_of, each, upright
from selfdistill.data.splits import Pixels, split

SCHEME = "folder://"
SPLITS = {  # by names of folders, in any case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
ALLOWED = "allowed: classes alone, CLASS/image.jpg, or splits alone, train/CLASS/image.jpg beside test/, val/ or both"
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
    return class_names(read_list(listed.read_bytes()), listed)


# ---- the list of files ----


@dataclass(frozen=True)
class Row:
    """A file of the list.  reason: why it cannot be read, empty where it can; it then counts as empty."""

    path: str
    bytes: int
    sha256: str
    reason: str = ""


def list_of(folder: Path) -> bytes:
    """CSV of path, bytes, SHA-256 and, only where there is one, the reason, of every file below class folders,
    in the order of the paths.  ValueError: what cannot be listed, or a top level that is not `split_folders`'s."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one that holds CLASS/image.jpg or train/CLASS/image.jpg")
    rows = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.parent != folder:
                content, reason = content_of(path)
                relative = path.relative_to(folder).as_posix()
                rows.append(Row(relative, len(content), hashlib.sha256(content).hexdigest(), reason))
    depth = 2 if split_folders(rows, folder) else 1
    inside = sorted((row for row in rows if row.path.count("/") >= depth), key=lambda row: row.path)
    cells = [(row.path, row.bytes, row.sha256, *([row.reason] if row.reason else [])) for row in inside]
    return csv_of([("path", "bytes", "sha256"), *cells])


def content_of(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, or none and why it has none; never waits, as a pipe would make one.

    ValueError: a file that others can read, on which the list must not depend."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(), ""
    except OSError as error:
        if path.is_file():
            refuse(error)
        if path.is_symlink() and not path.exists():
            return b"", "a link to nothing"
    return b"", "no regular file"


def refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: {error.strerror}; make it readable, or take it away") from None


def read_list(content: bytes) -> list[Row]:
    rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    return [Row(path, int(size), sha256, *reason) for path, size, sha256, *reason in list(rows)[1:]]


def split_folders(rows: list[Row], folder: Path) -> dict[str, str]:
    """{folder at the top: its split}, empty where the top level is of classes.

    A single folder with a split's name is a class if it stands beside others and holds files and no folders: `train`
    beside `bus`.  ValueError: splits beside other folders, without classes, without train, or twice.
    """
    folders: dict[str, bool] = {}  # whether they hold folders
    for row in rows:
        top, *rest = row.path.split("/")
        folders[top] = folders.get(top, False) or len(rest) > 1
    named = {top: SPLITS[top.lower()] for top in sorted(folders) if top.lower() in SPLITS}
    others = sorted(set(folders) - set(named))
    if not named or (others and len(named) == 1 and not any(folders[top] for top in named)):
        return {}
    shown = ", ".join(map(repr, named))
    if others:
        raise ValueError(f"{folder}: the splits {shown} beside other folders, such as {others[0]!r}; {ALLOWED}")
    flat = [top for top in named if not folders[top]]
    if flat:
        raise ValueError(f"{folder}: no classes' folders in {flat[0]!r}; {ALLOWED}")
    if "train" not in named.values() or len(named) == 1:
        raise ValueError(f"{folder}: no splits but {shown}; {ALLOWED}")
    if len(set(named.values())) < len(named):
        raise ValueError(f"{folder}: one split twice among {shown}; {ALLOWED}")
    return named


def class_names(rows: list[Row], folder: Path) -> list[str]:
    level = 1 if split_folders(rows, folder) else 0
    return sorted({row.path.split("/")[level] for row in rows})


def files_of(rows: list[Row], folder: Path) -> dict[str, ImageFiles]:
    names, splits = class_names(rows, folder), split_folders(rows, folder)
    number = {name: i for i, name in enumerate(names)}
    found: dict[str, list] = {}
    for row in rows:
        top, *rest = row.path.split("/")
        split, name = (splits[top], rest[0]) if splits else ("all", top)
        found.setdefault(split, []).append((row, number[name]))
    if splits and "test" not in found:
        found["test"] = found.pop("validation")
    for split, images in found.items():
        lacking = set(range(len(names))) - {label for _, label in images}
        if lacking and split in ("train", "all"):
            raise ValueError(f"{folder}: class {names[min(lacking)]!r} has no training images; take its folder away")
    return {split: split_of(images, folder) for split, images in found.items()}


def split_of(images: list[tuple[Row, int]], folder: Path) -> ImageFiles:
    def read(i: int) -> bytes:
        row, _ = images[i]
        if not os.path.lexists(folder / row.path):
            raise ValueError(f"{folder / row.path}: {os.strerror(errno.ENOENT)}; fetch the data set again")
        content, reason = content_of(folder / row.path)
        if reason != row.reason or hashlib.sha256(content).hexdigest() != row.sha256:
            raise ValueError(f"{folder / row.path}: it has changed since the folder was described; describe it anew")
        if reason:
            raise UnusableImageError(reason)
        return content

    labels = np.array([label for _, label in images], np.int64)
    return ImageFiles([row.path for row, _ in images], labels, read)


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

    if size is not None and not all(side in range(4, 4097) for side in size):
        raise ValueError(f"--size {' '.join(map(str, size))} is not allowed; allowed: H and W from 4 to 4096")
    folder = folder.resolve()
    content = list_of(folder)
    rows = read_list(content)
    names, parts = class_names(rows, folder), files_of(rows, folder)
    if len(names) < 2:
        raise ValueError(f"{folder}: {len(names)} folders of images; allowed: two or more classes, CLASS/image.jpg")
    for name in (str(folder), *names):  # which stand in the catalogue and on pages, as names of files do not
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ValueError(f"{name!a}: the name of this folder is no UTF-8; rename it")
    usable, shapes, modes = {}, [], set()
    for part, files in parts.items():
        kept = []
        for number, image in enumerate(each(files, upright)):
            if not isinstance(image, UnusableImageError):
                kept.append(number)
                shapes.append(min(image.size))
                modes.add(image.mode)
        usable[part] = files.labels[kept]
    counts = np.bincount(usable["train" if "train" in usable else "all"], minlength=len(names))
    fewest = int(counts.argmin())
    few = f"{folder}: class {names[fewest]!r} has {counts[fewest]} usable images to split; allowed: about 10 or more"
    if not counts[fewest]:
        raise ValueError(f"{few}, or take its folder away")
    train, validation = sizes(usable, len(names))
    try:
        published = {part: Pixels(labels, labels, labels) for part, labels in usable.items()}
        split(published, SplitSizes(train=train, validation=validation, seed=seed))
    except ValueError:
        raise ValueError(few) from None
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
