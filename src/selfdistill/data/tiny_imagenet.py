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
from pathlib import Path

import numpy as np

from selfdistill.data import archives
from selfdistill.data.images import ImageFiles


def image_files(raw: Path, entry) -> dict[str, ImageFiles]:
    archive = zipfile.ZipFile(raw / entry.files[0].name)  # read by several threads, which it allows
    found, top = contents(archive, raw / entry.files[0].name)
    number = {wnid: i for i, wnid in enumerate(wnids(archive, found, top))}
    train, test = [], []
    for name in sorted(found):
        parts = name.removeprefix(top).split("/")
        if parts[0] == "train" and parts[-1].endswith(".JPEG"):
            train.append((name, number[parts[1]]))
    annotations = archive.read(found[f"{top}val/val_annotations.txt"]).decode()
    for line in sorted(annotations.splitlines()):
        name, wnid = line.split("\t")[:2]
        test.append((f"{top}val/images/{name}", number[wnid]))
    missing = [name for name, _ in test if name not in found]
    if missing:
        raise ValueError(f"{raw / entry.files[0].name}: {missing[0]} is not in it; fetch it again")
    return {split: files_of(archive, found, images) for split, images in (("train", train), ("test", test))}


def classes(raw: Path) -> list[str]:
    """The first word of words.txt for each class, with its WordNet number where two classes share it."""
    (path,) = raw.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        found, top = contents(archive, path)
        lines = archive.read(found[f"{top}words.txt"]).decode().splitlines()
        words = {wnid: meaning.split(",")[0] for wnid, meaning in (line.split("\t") for line in lines)}
        names = [(words[wnid], wnid) for wnid in wnids(archive, found, top)]
    return unambiguous(names)


def unambiguous(names: list[tuple[str, str]]) -> list[str]:
    """Words of (word, WordNet number), with the number where a word alone would mean two classes."""
    words = [word for word, _ in names]
    return [word if words.count(word) == 1 else f"{word} ({wnid})" for word, wnid in names]


def contents(archive: zipfile.ZipFile, path: Path) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The members by name, and the folder at the top, with its slash."""
    found = archives.zip_index(archive, archives.RATIO * path.stat().st_size)
    tops = [name.removesuffix("wnids.txt") for name in found if name.endswith("/wnids.txt")]
    if len(tops) != 1:
        raise ValueError(f"{path}: {len(tops)} files wnids.txt in it, not 1; fetch it again")
    return found, tops[0]


def wnids(archive: zipfile.ZipFile, found: dict, top: str) -> list[str]:
    return sorted(archive.read(found[f"{top}wnids.txt"]).decode().split())


def files_of(archive: zipfile.ZipFile, found: dict, images: list[tuple[str, int]]) -> ImageFiles:
    labels = np.array([label for _, label in images], np.int64)
    return ImageFiles([name for name, _ in images], labels, lambda i: archive.read(found[images[i][0]]))
