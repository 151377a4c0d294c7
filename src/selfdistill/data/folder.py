"""Reader of a folder of images: CLASS/image.jpg, or train/CLASS/image.jpg beside test/ and perhaps validation/.

The catalogue gives the SHA-256 of a list of all its files, each with its bytes and its SHA-256.  That list
is what `fetch` makes and verifies; the images stay where they are, and each is compared with the list when
it is read.  Everything goes by the names' order, nothing by the file system's.  Names that begin with a dot
are left out, and so are files that systems put into every folder (`SYSTEM`), and files outside the classes' folders.
What cannot be read as a file, such as a link to nothing, to a folder, or to a place outside, is listed as such, and is
not an image.
"""

import csv
import errno
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfdistill.data.images import LARGEST, ImageFiles, UnusableImageError, csv_of
from selfdistill.data.reading import DataError, reading
from selfdistill.data.reading import content_of as published_content

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

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
# Files and folders that Windows, macOS and network storage make on their own, in small letters.
SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})


def image_files(raw: Path, entry: "DataEntry") -> dict[str, ImageFiles]:
    """{"all"} or the given splits; classes in the order of their names.  A folder with train and validation
    alone gives its validation images as the test split, and validation is cut from train."""
    (listed,) = entry.files
    rows = read_list(published_content(raw / listed.name))
    return files_of(rows, raw.parent.parent / listed.sources[0].removeprefix(SCHEME))


def classes(raw: Path) -> list[str]:
    """The names of the classes' folders, in their order."""
    (listed,) = raw.glob("*.csv")
    return class_names(read_list(published_content(listed)), listed)


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
    in the order of the paths.  DataError: what cannot be listed, or a top level that is not `split_folders`'s."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one that holds CLASS/image.jpg or train/CLASS/image.jpg")
    rows, links = [], []  # the latter to folders
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not left_out(f)]
        links += [Path(place) / f for f in folders if (Path(place) / f).is_symlink()]
        for path in [
            Path(place) / name for name in (*names, *(link.name for link in links if link.parent == Path(place)))
        ]:
            if not left_out(path.name) and path.parent != folder:
                content, reason = content_of(path, folder)
                relative = path.relative_to(folder).as_posix()
                rows.append(Row(relative, len(content), hashlib.sha256(content).hexdigest(), reason))
    depth = 2 if split_folders(rows, folder) else 1
    for link in sorted(links):
        if len(link.relative_to(folder).parts) <= depth:
            raise DataError(f"{link}: a link to a folder, which is not followed; put the folder itself there")
    inside = sorted((row for row in rows if row.path.count("/") >= depth), key=lambda row: row.path)
    cells = [(row.path, row.bytes, row.sha256, *([row.reason] if row.reason else [])) for row in inside]
    return csv_of([("path", "bytes", "sha256"), *cells])


def left_out(name: str) -> bool:
    """Whether a file or folder was not put there by the user."""
    return name.startswith(".") or name.lower() in SYSTEM


def content_of(path: Path, folder: Path) -> tuple[bytes, str]:
    """The bytes of a file below a folder, or none and why it has none; never waits, as a pipe would make one.

    DataError: a file that others can read, on which the list must not depend."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode):
                if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                    return b"", "a link to a file outside the folder"
                if found.st_size > LARGEST:
                    return b"", f"more than {LARGEST:,} bytes"
                return file.read(), ""
    except OSError as error:
        if path.is_file():
            refuse(error)
        if path.is_symlink() and not path.exists():
            return b"", "a link to nothing"
    return b"", "a link to a folder" if path.is_dir() else "no regular file"


def refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: {error.strerror}; make it readable, or take it away") from None


def read_list(content: bytes) -> list[Row]:
    with reading("the list of files"):
        table = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
        rows = [Row(path, int(size), sha256, *reason) for path, size, sha256, *reason in list(table)[1:]]
    for row in rows:
        if row.path.startswith("/") or ".." in row.path.split("/") or "/" not in row.path:
            raise DataError(f"the list of files: {row.path!a} is no path in a folder of a class; fetch it again")
    return rows


def split_folders(rows: list[Row], folder: Path) -> dict[str, str]:
    """{folder at the top: its split}, empty where the top level is of classes.

    A single folder with a split's name is a class if it stands beside others and holds files and no folders: `train`
    beside `bus`.  DataError: splits beside other folders, without classes, without train, or twice.
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
        raise DataError(f"{folder}: the splits {shown} beside other folders, such as {others[0]!r}; {ALLOWED}")
    flat = [top for top in named if not folders[top]]
    if flat:
        raise DataError(f"{folder}: no classes' folders in {flat[0]!r}; {ALLOWED}")
    if "train" not in named.values() or len(named) == 1:
        raise DataError(f"{folder}: no splits but {shown}; {ALLOWED}")
    if len(set(named.values())) < len(named):
        raise DataError(f"{folder}: one split twice among {shown}; {ALLOWED}")
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
            raise DataError(f"{folder}: class {names[min(lacking)]!r} has no training images; take its folder away")
    return {split: split_of(images, folder) for split, images in found.items()}


def split_of(images: list[tuple[Row, int]], folder: Path) -> ImageFiles:
    def read(i: int) -> bytes:
        row, _ = images[i]
        if not os.path.lexists(folder / row.path):
            raise DataError(f"{folder / row.path}: {os.strerror(errno.ENOENT)}; fetch the data set again")
        content, reason = content_of(folder / row.path, folder)
        if reason != row.reason or hashlib.sha256(content).hexdigest() != row.sha256:
            raise DataError(f"{folder / row.path}: it has changed since the folder was described; describe it anew")
        if reason:
            raise UnusableImageError(reason)
        return content

    labels = np.array([label for _, label in images], np.int64)
    return ImageFiles([row.path for row, _ in images], labels, read)
