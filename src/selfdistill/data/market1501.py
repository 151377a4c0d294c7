"""Reader of Market-1501 (Zheng et al., ICCV 2015) from its published zip, which stays packed.

    Market-1501-v15.09.15/bounding_box_train/  12,936 images of 751 persons
                          query/               3,368 images of 750 others, one a person and camera
                          bounding_box_test/   19,732 images to search: those 750 persons, distractors and junk

A file is named `0002_c1s1_000451_03.jpg`: identity, camera (1 to 6), sequence, frame, box.  Identity 0000 is
a distractor, a wrong answer to every query; -1 is junk, a box that fits a person badly, without influence on
the result: 15,913 images stay in the gallery.  Other folders (hand-drawn boxes, ground truth for multiple
queries) and other files are not read.

Counts of images and persons: the archive's readme.txt as quoted by a mirror of it, and for 15,913 the
docstring of torchreid's data set class.
"""

import re
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfdistill.data import archives
from selfdistill.data.images import DISTRACTOR, JUNK, ImageFiles
from selfdistill.data.reading import DataError, member_of, reading

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(-1|\d{4})_c([1-6])s\d+_.+\.jpg", re.ASCII)


def image_files(raw: Path, entry: "DataEntry") -> dict[str, ImageFiles]:
    """train, labelled by person in the order of the published numbers; query and gallery, whose labels are
    the published numbers themselves, with cameras."""
    path = raw / entry.files[0].name
    with reading(path):
        archive = zipfile.ZipFile(path)  # read by several threads, which it allows
        found = members(archive, path)
    splits = {}
    for split, (names, identities, cameras) in arranged(found, path).items():
        labels = np.unique(identities, return_inverse=True)[1] if split == "train" else identities
        seen_by = None if split == "train" else cameras
        splits[split] = ImageFiles(names, labels.astype(np.int64), reader_of(archive, found, names), seen_by)
    return splits


def reader_of(archive: zipfile.ZipFile, found: dict[str, zipfile.ZipInfo], names: list[str]) -> Callable[[int], bytes]:
    return lambda i: member_of(archive, found[names[i]])


def classes(raw: Path) -> list[str]:
    """The published numbers of the training persons, without leading zeros."""
    (path,) = raw.glob("*.zip")
    with reading(path), zipfile.ZipFile(path) as archive:
        _, identities, _ = arranged(members(archive, path), path)["train"]
    return [str(identity) for identity in np.unique(identities)]


def members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    return archives.zip_index(archive, archives.RATIO * path.stat().st_size + 2**20)


def arranged(names: Collection[str], path: Path) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """{"train" | "query" | "gallery": (names in order, published identities int64 N, cameras int64 N, from 1)}.

    names: of all members of the archive at `path`.  ValueError names the first thing that is not as published.
    """
    splits = {}
    for split, folder in FOLDERS.items():
        inside = sorted(n for n in names if n.count("/") == 2 and n.split("/")[1] == folder and n.endswith(".jpg"))
        if not inside:
            raise DataError(f"{path}: no images in a folder {folder}; allowed: Market-1501-v15.09.15 as published")
        parsed = []
        for name in inside:
            match = NAME.fullmatch(name.split("/")[2])
            if match is None:
                allowed = "such as 0002_c1s1_000451_03.jpg, cameras 1 to 6"
                raise DataError(f"{path}: {name}: not a published name; allowed: {allowed}")
            parsed.append(match)
        identities, cameras = (np.array([int(match[i]) for match in parsed], np.int64) for i in (1, 2))
        if split != "gallery" and identities.min() <= DISTRACTOR:
            kind = {DISTRACTOR: "a distractor", JUNK: "junk"}[int(identities.min())]
            first = inside[int(identities.argmin())]
            raise DataError(f"{path}: {first}: {kind}; allowed: in {FOLDERS['gallery']} alone")
        splits[split] = inside, identities, cameras
    tested = np.concatenate([splits["query"][1], splits["gallery"][1]])
    both = np.intersect1d(splits["train"][1], tested)
    if len(both):
        raise DataError(f"{path}: person {both[0]:04d} is in training and in test; allowed: in one of them")
    return splits
