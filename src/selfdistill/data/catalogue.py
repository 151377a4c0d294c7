"""The catalogue of data sets, `data/params.yaml`: where each one's files come from, and how it is split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from selfdistill.data.drawing import size_faults
from selfdistill.schema import (
    CATALOGUE,
    ConfigError,
    Md5,
    Name,
    Sha256,
    Strict,
    all_faults,
    nearest,
    read_yaml,
    validate,
)


class Member(Strict):
    """One file inside a published archive, under its path there and in torchvision's layout; bytes and
    sha256 are None where they were not published."""

    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$")
    bytes: int | None = Field(default=None, gt=0)
    sha256: Sha256 | None = None
    md5: Md5 | None = None

    @property
    def target(self) -> str:
        """Its name in the data set's folder of raw files."""
        return self.name.rpartition("/")[2]


class SourceFile(Strict):
    """One file of a data set as published.

    sha256: None where none is known; `verified` then is false, and the first file that is fetched is
    pinned (`selfdistill.data.fetch`).  verified: whether this project has seen the file with this hash.
    unpacked: the members of a .tar.gz, .tar or .zip that are wanted, or the one content of a .gz; empty for
    a file that is kept unchanged.  in_place: it stays in the mirror, and a note of it is kept.
    """

    name: Name
    bytes: int | None = Field(gt=0)
    sha256: Sha256 | None
    md5: Md5 | None = None
    verified: bool = True
    in_place: bool = False
    unpacked: list[Member] = []
    sources: list[Annotated[str, Field(pattern=r"^(https?|package|folder)://")]] = []

    @property
    def target(self) -> str:
        return self.name


class SplitSizes(Strict):
    """How a data set is split when it is prepared.

    Most have a pool, from which a study draws training and validation images: all published training images, or,
    of a data set without test images, all but `test` of them.  Those whose training images are packed, whose
    persons are to be found again, or whose files give a validation split, have a fixed one: `train` and
    `validation` images.  seed: of what is drawn here.
    """

    test: int | None = Field(default=None, ge=1)
    train: int | None = Field(default=None, ge=2)
    validation: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def fixed(self) -> bool:
        return self.train is not None


class ImageForm(Strict):
    """What image files are made into: size (H, W) and channels.  shorter_side: where training images are too
    many to keep as pixels, they are packed as JPEG files with at most so many pixels there."""

    size: list[Annotated[int, Field(ge=4, le=4096)]] = Field(min_length=2, max_length=2)
    channels: Literal[1, 3]
    shorter_side: int | None = Field(default=None, ge=8, le=4096)


class ReRanking(Strict):
    """k-reciprocal re-ranking of a gallery, `selfdistill.evaluation.retrieval.re_rank`."""

    k1: int = Field(ge=1, le=10_000)
    k2: int = Field(ge=1, le=10_000)
    weight: float = Field(ge=0, le=1, allow_inf_nan=False)


class DataEntry(Strict):
    """obtain: where and how a user gets files that have no sources.  image: for readers of image files.
    re_ranking: of sets of persons to be found again: report re-ranked metrics, too.
    images: how many each published split has.  classes: None where the reader takes them from the files.
    tests: the data set whose networks a set without `split` tests."""

    title: str
    reader: Name
    licence: str
    citation: str
    obtain: str | None = None
    files: list[SourceFile] = Field(min_length=1)
    image: ImageForm | None = None
    images: dict[str, Annotated[int, Field(ge=1)]] | None = None
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    split: SplitSizes | None = None
    tests: Name | None = None
    re_ranking: ReRanking | None = None


class Catalogue(Strict):
    datasets: dict[Name, DataEntry] = Field(min_length=1)


def read_catalogue(path: Path) -> Catalogue:
    """The data sets of a data/params.yaml.  Raises ConfigError with every fault found."""
    catalogue, faults = validate(Catalogue, read_yaml(path, CATALOGUE))
    readers = Path(__file__).parent
    for name, entry in catalogue.datasets.items() if catalogue else ():
        if not (readers / f"{entry.reader}.py").is_file():
            faults.append(f"datasets.{name}.reader: {entry.reader!r} is no file {readers / entry.reader}.py")
        faults += unpacked_faults(f"datasets.{name}.files", entry.files)
        faults += source_faults(f"datasets.{name}", entry)
        faults += catalogue_split_faults(f"datasets.{name}", entry)
        if entry.split is not None and entry.tests is not None:
            faults.append(f"datasets.{name}.tests: {entry.tests!r} is not allowed beside `split`; allowed: one of both")
        if entry.tests is not None and entry.tests not in catalogue.datasets:
            faults.append(f"datasets.{name}.tests: {entry.tests!r}; {nearest(entry.tests, list(catalogue.datasets))}")
        elif entry.tests is not None and entry.classes != catalogue.datasets[entry.tests].classes:
            faults.append(f"datasets.{name}.classes: not those of {entry.tests}; allowed: the same, in the same order")
    if faults:
        raise ConfigError(all_faults(path, faults))
    return catalogue


def unpacked_faults(place: str, files: list[SourceFile]) -> Iterator[str]:
    """Archives of an unknown form, and files that would overwrite each other."""
    targets = []
    for i, file in enumerate(files):
        archive = file.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))
        if file.unpacked and not (archive or file.name.endswith(".gz")):
            allowed = "a .tar.gz, .tgz, .tar, .zip or .gz"
            yield f"{place}[{i}].unpacked: {file.name!r} cannot be unpacked; allowed: {allowed}"
        elif len(file.unpacked) > 1 and not archive:
            yield f"{place}[{i}].unpacked: {len(file.unpacked)} files; allowed: one, for a .gz holds no more"
        targets += [member.target for member in file.unpacked] or [file.name]
    for target in sorted({t for t in targets if targets.count(t) > 1}):
        yield f"{place}: two files would be kept as {target!r}; allowed: each name once"


def source_faults(place: str, entry: DataEntry) -> Iterator[str]:
    """Files that cannot be fetched, and hashes that were not verified."""
    for i, file in enumerate(entry.files):
        if not file.sources and entry.obtain is None:
            yield f"{place}.files[{i}].sources: none; allowed: at least one, or `obtain`: how a user gets the file"
        if file.verified and (file.sha256 is None or file.bytes is None):
            yield (
                f"{place}.files[{i}].verified: true is not allowed without bytes and sha256; allowed: false, and the "
                "first file that is fetched is pinned"
            )


def split_faults(
    entry: DataEntry, split: str, training_images: int | None, validation_images: int | None
) -> Iterator[str]:
    """What of a study's `split`, `training_images` and `validation_images` a data set of the catalogue does not allow;
    `selfdistill.data.prepared.open_splits` sees what only the prepared images show."""
    images, sizes = entry.images or {}, entry.split
    pool = None
    if sizes is not None and not sizes.fixed:
        pool = images["all"] - (sizes.test or 0) if "all" in images else images.get("train")
    classes = len(entry.classes) if entry.classes else None
    fixed = sizes is None or sizes.fixed
    yield from size_faults(split, training_images, validation_images, pool=pool, classes=classes, fixed=fixed)


def catalogue_split_faults(place: str, entry: DataEntry) -> Iterator[str]:
    """Sizes of splits that contradict each other, or what the files have."""
    split, images = entry.split, entry.images or {}
    if split is None:
        return
    if (split.train is None) != (split.validation is None):
        yield f"{place}.split: one of train and validation is not allowed; allowed: both, or neither for a pool"
    if split.test is not None and split.fixed:
        yield f"{place}.split.test: {split.test} is not allowed beside train; what train and validation leave is test"
    elif split.test is not None and images and "all" not in images:
        yield f"{place}.split.test: {split.test} is not allowed beside published test images; take it out"
    if split.test is None and not split.fixed and "all" in images:
        yield f"{place}.split.test: missing; allowed: how many of the {images['all']:,} images are for the test"
    fixed = "allowed: train and validation"
    if entry.image is not None and entry.image.shorter_side is not None and not split.fixed:
        yield f"{place}.split: a pool cannot be packed (image.shorter_side); {fixed}"
    if "gallery" in images and not split.fixed:
        yield f"{place}.split: persons to be found again have no pool; {fixed}"
    if "validation" in images and not split.fixed:
        yield f"{place}.split: the files give a validation split; {fixed}"
    there = images.get("all", images.get("train", 0)) + images.get("validation", 0)
    asked = (split.train or 0) + (split.validation or 0) + (split.test or 0)
    if there and asked > there - ("all" in images):  # of "all", one at least is left for what is not named
        yield f"{place}.split: {asked:,} images asked for, {there:,} there"
