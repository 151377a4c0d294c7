"""Reader of Tiny ImageNet (Stanford's CS231n) from its published zip, which stays packed.

    wnids.txt, words.txt                      the classes, and what they mean
    train/<class>/images/<class>_<i>.JPEG     500 a class
    val/images/val_<i>.JPEG                   50 a class, told by val/val_annotations.txt
    test/images/                              without labels, not read

The labels of its test split were never published: its validation split is the test split here, as in the
papers, and validation is cut from train.  Classes go in the order of their WordNet numbers, images in that of
their names.  Some images are grey; they become RGB.
"""

import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfdistill.data import archives
from selfdistill.data.images import ImageFiles
from selfdistill.data.reading import LARGEST_TEXT, DataError, member_of, reading, unambiguous

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

ANNOTATIONS = "val/val_annotations.txt"


def image_files(raw: Path, entry: "DataEntry") -> dict[str, ImageFiles]:
    """train and test, labelled by the order of the classes' WordNet numbers."""
    path = raw / entry.files[0].name
    with reading(path):
        archive = zipfile.ZipFile(path)  # read by several threads, which it allows
        found, top = contents(archive, path)
        number = {wnid: i for i, wnid in enumerate(wnids(archive, found, top))}
        lines = text_of(archive, found, f"{top}{ANNOTATIONS}").splitlines()
    told = [(name, wnid) for name, wnid, *_ in (line.split("\t") for line in sorted(lines))]
    inside = [name for name in sorted(found) if name.endswith(".JPEG")]
    train = [
        (name, name.removeprefix(f"{top}train/").split("/")[0]) for name in inside if name.startswith(f"{top}train/")
    ]
    test = [(f"{top}val/images/{name}", wnid) for name, wnid in told]
    known = {name for name in inside if name.startswith(f"{top}val/images/")}
    missing = [name for name, _ in test if name not in known]
    if missing:
        raise DataError(f"{path}: {missing[0]} is not in it; fetch it again")
    twice = [name for name, count in Counter(name for name, _ in told).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two lines for {twice[0]} in {ANNOTATIONS}; fetch it again")
    if len(test) != len(known):
        raise DataError(
            f"{path}: {len(known):,} images in val/images, {len(test):,} lines in {ANNOTATIONS}; fetch it again"
        )
    for name, wnid in (*train, *test):
        if wnid not in number:
            raise DataError(f"{path}: {name} is of class {wnid!r}, which is not in wnids.txt; fetch it again")
    splits = {"train": train, "test": test}
    return {split: files_of(archive, found, [(n, number[w]) for n, w in images]) for split, images in splits.items()}


def classes(raw: Path) -> list[str]:
    """The first word of words.txt for each class, with its WordNet number where two classes share it."""
    (path,) = raw.glob("*.zip")
    with reading(path), zipfile.ZipFile(path) as archive:
        found, top = contents(archive, path)
        lines = text_of(archive, found, f"{top}words.txt").splitlines()
        words = {wnid: meaning.split(",")[0] for wnid, meaning in (line.split("\t") for line in lines)}
        missing = [wnid for wnid in wnids(archive, found, top) if wnid not in words]
        if missing:
            raise DataError(f"{path}: no words for class {missing[0]} in words.txt; fetch it again")
        return unambiguous([(words[wnid], wnid) for wnid in wnids(archive, found, top)])


def contents(archive: zipfile.ZipFile, path: Path) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The members by name, and the folder at the top, with its slash."""
    found = archives.zip_index(archive, archives.RATIO * path.stat().st_size)
    tops = [name.removesuffix("wnids.txt") for name in found if name.endswith("/wnids.txt")]
    if len(tops) != 1:
        raise DataError(f"{path}: {len(tops)} files wnids.txt in it, not 1; fetch it again")
    return found, tops[0]


def wnids(archive: zipfile.ZipFile, found: dict[str, zipfile.ZipInfo], top: str) -> list[str]:
    return sorted(set(text_of(archive, found, f"{top}wnids.txt").split()))


def text_of(archive: zipfile.ZipFile, found: dict[str, zipfile.ZipInfo], name: str) -> str:
    if name not in found:
        raise DataError(f"{archive.filename}: {name} is not in it; fetch it again")
    return member_of(archive, found[name], LARGEST_TEXT).decode()


def files_of(archive: zipfile.ZipFile, found: dict[str, zipfile.ZipInfo], images: list[tuple[str, int]]) -> ImageFiles:
    labels = np.array([label for _, label in images], np.int64)
    return ImageFiles([name for name, _ in images], labels, lambda i: member_of(archive, found[images[i][0]]))
