"""Reader of Market-1501 (Zheng et al., ICCV 2015) in its published layout, Market-1501-v15.09.15.

    bounding_box_train/  12,936 images of 751 persons
    query/               3,368 images of 750 others, one a person and camera
    bounding_box_test/   19,732 images to search: those 750 persons, distractors and junk

A file is named `0002_c1s1_000451_03.jpg`: identity, camera (1 to 6), sequence, frame, box.  Identity 0000 is
a distractor, a wrong answer to every query; -1 is junk, a box that fits a person badly, without influence on
the result and left out here: 15,913 images stay.  Other folders (hand-drawn boxes, ground truth for
multiple queries) and other files are not read.

Counts of images and persons: the archive's readme.txt as quoted by a mirror of it, and for 15,913 the
docstring of torchreid's data set class.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PUBLISHED = {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, 750)}
NAME = re.compile(r"(-1|\d{4})_c([1-6])s\d+_.+\.jpg")
DISTRACTOR, JUNK = 0, -1


@dataclass(frozen=True)
class Split:
    """paths: of N images; identities, cameras: int64 N, cameras from 1."""

    paths: list[Path]
    identities: np.ndarray
    cameras: np.ndarray


def read(folder: Path, counts: dict[str, tuple[int, int]] | None = PUBLISHED) -> dict[str, Split]:
    """{"train": ..., "query": ..., "gallery": ...} of the unpacked folder, each sorted by file name.

    Identities of query and gallery are the published numbers, with 0 for distractors; those of train are
    labels for a classifier, 0 to 750 in the order of the published ones.
    counts: images without junk, and persons without the distractors' 0, that each split must have; None
    for any.  ValueError names the first thing that is not as published.
    """
    missing = [name for name in FOLDERS.values() if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder}: no folder {', '.join(missing)}; allowed: Market-1501-v15.09.15 as unpacked")
    splits = {split: _read_split(folder / name) for split, name in FOLDERS.items()}
    for split in ("train", "query"):
        if len(splits[split].identities) and splits[split].identities.min() == DISTRACTOR:
            raise ValueError(f"{folder / FOLDERS[split]}: a distractor (0000); allowed: persons, from 0001")
    for split, (images, persons) in (counts or {}).items():
        identities = splits[split].identities
        found = len(identities), len(set(identities.tolist()) - {DISTRACTOR})
        if found != (images, persons):
            raise ValueError(
                f"{folder / FOLDERS[split]}: {found[0]} images of {found[1]} persons, junk and distractors not "
                f"counted as persons; allowed: {images} of {persons}; unpack the archive again"
            )
    train = splits["train"]
    both = np.intersect1d(train.identities, np.concatenate([splits[s].identities for s in ("query", "gallery")]))
    if len(both):
        raise ValueError(f"{folder}: person {both[0]:04d} is in training and in test; allowed: in one of them")
    _, labels = np.unique(train.identities, return_inverse=True)
    return {**splits, "train": Split(train.paths, labels.astype(np.int64), train.cameras)}


def _read_split(folder: Path) -> Split:
    """The images of one folder that are not junk, under their published identities."""
    paths, identities, cameras = [], [], []
    for path in sorted(folder.glob("*.jpg")):
        name = NAME.fullmatch(path.name)
        if name is None:
            raise ValueError(f"{path}: not a published name; allowed: such as 0002_c1s1_000451_03.jpg, cameras 1 to 6")
        identity = int(name[1])
        if identity == JUNK and folder.name != FOLDERS["gallery"]:
            raise ValueError(f"{path}: junk; allowed: in {FOLDERS['gallery']} alone")
        if identity != JUNK:
            paths.append(path)
            identities.append(identity)
            cameras.append(int(name[2]))
    return Split(paths, np.array(identities, np.int64), np.array(cameras, np.int64))


def pixels(paths: list[Path], size: tuple[int, int] = (128, 64)) -> np.ndarray:
    """uint8 N x 3 x H x W; images of another size are resized (Lanczos).

    The published ones are recalled to be 128 x 64 (H x W) throughout; this was not verified.
    ValueError names an image that cannot be decoded.
    """
    height, width = size
    decoded = np.empty((len(paths), 3, height, width), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                whole = image.convert("RGB")
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise ValueError(f"{path}: no image that can be read ({error}); unpack the archive again") from None
        if whole.size != (width, height):
            whole = whole.resize((width, height), Image.Resampling.LANCZOS)
        decoded[i] = np.asarray(whole).transpose(2, 0, 1)
    return decoded
