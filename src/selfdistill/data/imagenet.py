"""Reader of ImageNet (ILSVRC2012) from its three published archives, which stay where the user put them.

    ILSVRC2012_img_train.tar         a tar a class, <WordNet number>.tar, of JPEG files
    ILSVRC2012_img_val.tar           ILSVRC2012_val_00000001.JPEG to 00050000
    ILSVRC2012_devkit_t12.tar.gz     the classes' numbers and words, and the labels of those 50,000

The labels of its test split were never published: its validation split is the test split here, as in the
papers, and validation is cut from train.  Classes go in the order of their WordNet numbers.  Nothing is
unpacked: an image is read from where it lies in its tar.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfdistill.data import archives
from selfdistill.data.images import LARGEST, ImageFiles
from selfdistill.data.mirror import in_place
from selfdistill.data.reading import DataError, reading, unambiguous

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

DEVKIT = "ILSVRC2012_devkit_t12"


def image_files(raw: Path, entry: "DataEntry") -> dict[str, ImageFiles]:
    train, test, devkit = (in_place(raw, file.name) for file in entry.files)
    synsets, truth = read_devkit(devkit)
    number = {wnid: i for i, (wnid, _) in enumerate(sorted(synsets.values()))}
    unknown = [t for t in truth if t not in synsets]
    if unknown:
        raise DataError(
            f"{devkit}: label {unknown[0]} of a validation image is no class of its meta.mat; fetch it again"
        )
    return {"train": train_files(train, number), "test": test_files(test, [number[synsets[t][0]] for t in truth])}


def classes(raw: Path) -> list[str]:
    """The first word of each class, in the order of the WordNet numbers."""
    synsets, _ = read_devkit(in_place(raw, f"{DEVKIT}.tar.gz"))
    return unambiguous([(words.split(",")[0], wnid) for wnid, words in sorted(synsets.values())])


def train_files(path: Path, number: dict[str, int]) -> ImageFiles:
    names, labels, places = [], [], []
    with open(path, "rb") as file:
        for name, (first, size) in sorted(archives.tar_index(file).items()):
            wnid = name.removesuffix(".tar")
            if wnid not in number:
                raise DataError(f"{path}: {name} is no class of the development kit; get both from one publisher")
            file.seek(first)
            for image, place in sorted(archives.tar_index(file, end=first + size).items()):
                if place[1] > LARGEST:
                    raise DataError(f"{path}: {image} has {place[1]:,} bytes; allowed: {LARGEST:,}")
                names.append(f"{wnid}/{image}")
                labels.append(number[wnid])
                places.append(place)
    return files_of(path, names, labels, places)


def test_files(path: Path, labels: list[int]) -> ImageFiles:
    with open(path, "rb") as file:
        found = sorted(archives.tar_index(file).items())
    if len(found) != len(labels):
        raise DataError(f"{path}: {len(found)} images, {len(labels)} labels in the development kit")
    return files_of(path, [name for name, _ in found], labels, [place for _, place in found])


def files_of(path: Path, names: list[str], labels: list[int], places: list[tuple[int, int]]) -> ImageFiles:
    handle = open(path, "rb")  # noqa: SIM115  (it lives as long as the reading function)
    at = np.array(places, np.int64).reshape(-1, 2)
    return ImageFiles(
        names, np.array(labels, np.int64), lambda i: os.pread(handle.fileno(), int(at[i, 1]), int(at[i, 0]))
    )


def read_devkit(path: Path) -> tuple[dict[int, tuple[str, str]], list[int]]:
    """{ILSVRC2012_ID: (WordNet number, words)} of the classes without children, and the ID of each image of the
    validation split.  The MAT-file is a table of numbers and texts, read after its archive was verified."""
    from scipy.io import loadmat

    wanted = {f"{DEVKIT}/data/{name}": name for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")}
    found = {wanted[name]: file.read() for name, _, file in archives.members(path) if name in wanted}
    if len(found) < len(wanted):
        raise DataError(f"{path}: {' or '.join(wanted)} is not in it; get it from its publisher again")
    with reading(path):
        table = loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [row for row in table if not row["num_children"]]
        truth = [int(line) for line in found["ILSVRC2012_validation_ground_truth.txt"].split()]
    return {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in leaves}, truth
