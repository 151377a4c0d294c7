"""Split a data set and pack each split into one file.

Where the publisher gives a test split, it is kept whole; otherwise it is drawn, stratified by class.  What is
left is one pool, from which each seed of a study draws (`selfdistill.data.prepared.open_splits`), or, where the
catalogue gives their sizes, fixed splits.  The indices of every image are kept in its file.  Splits of persons to
be found again (query, gallery) are test, and kept without junk.

A reader is a module of this package with `read(raw)` -> {"train", "test"} or {"all"}, each (images uint8
N x C x H x W, labels int64 N), or with `image_files(raw, entry)` -> the same of
`selfdistill.data.images.ImageFiles`; and perhaps with `classes(raw)`, the names in the files.  A reader of test
images alone has `tests(raw, entry)`, which yields (name, tensors).
"""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from selfdistill.data.images import DISTRACTOR, JUNK, Quarantined, White, commonest, csv_of, decoded
from selfdistill.data.packing import Packed, spooled
from selfdistill.data.reading import DataError, labelled, reading
from selfdistill.data.splits import Pixels, pixels_sha256, split, write_tensors
from selfdistill.files import write_atomically

if TYPE_CHECKING:  # its library, pydantic, is not needed to prepare data
    from selfdistill.data.catalogue import DataEntry

DUPLICATES = "splits", "first", "second", "labels", "first_name", "second_name"  # columns
FOLDERS = dict.fromkeys(("pool", "train", "validation"), "training")  # all else is test


def prepare(name: str, entry: "DataEntry", raw: Path, prepared: Path) -> dict[str, Any]:
    """Write `prepared`/`name`/training (pool, or train and validation, and dataset.json) and `prepared`/`name`/test,
    apart, so that training does not even depend on the test images, and `prepared`/`name`/report; all of it or
    nothing.  A split is a safetensors file: images uint8 N x C x H x W, labels int64 N, indices int64 N in the
    published order; or, for query and gallery, identities and cameras in place of labels; or, for training images
    that `entry.image.shorter_side` says to pack, what `selfdistill.data.prepared.packed` reads.  Beside query and
    gallery stands `protocol.json` with `entry.re_ranking`.  Returns what report.json says.

    DataError: files that are not as published, or that the entry does not fit."""
    reader = import_module(f"selfdistill.data.{entry.reader}")
    if not any(hasattr(reader, form) for form in (("read", "image_files") if entry.split else ("tests",))):
        raise DataError(f"{name}: {entry.reader}.py reads no images of classes, of which alone this stage makes splits")
    with whole(prepared / name) as folder:
        with reading(raw / name):
            classes = class_names(name, entry, reader, raw / name)
        if entry.split is None:
            return prepare_tests(name, entry, reader, raw / name, folder, classes)
        return prepare_splits(name, entry, reader, raw / name, folder, classes)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose folders take the places of those in `folder` when all is written; of what is
    begun and not finished nothing stays."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        folder.mkdir(parents=True, exist_ok=True)
        for part in sorted(partial.iterdir()):
            shutil.rmtree(folder / part.name, ignore_errors=True)
            os.replace(part, folder / part.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def prepare_splits(
    name: str, entry: "DataEntry", reader: ModuleType, raw: Path, folder: Path, classes: list[str]
) -> dict[str, Any]:
    """`prepare` for a data set of images to train with."""
    assert entry.split is not None
    spool = folder.parent / f"{name}.spool"
    try:
        with reading(raw):
            published, files, bad, white = read_published(name, entry, reader, raw, spool)
        for part, source in published.items():
            if source.cameras is None and source.labels.max() >= len(classes):
                raise DataError(
                    f"{name}: label {source.labels.max()} in {part}; allowed: 0 to {len(classes) - 1}, the classes"
                )
        hashes, counts, fingerprints = {}, {}, {}
        for part, (origin, rows) in split(published, entry.split).items():
            chosen = published[origin].select(rows)
            hashes[part], counts[part] = chosen.write(folder / FOLDERS.get(part, "test"), part), len(rows)
            labels = chosen.labels.tolist()
            names = [classes[i] for i in labels] if chosen.cameras is None else list(map(str, labels))
            of = files.get(origin)
            fingerprints[part] = chosen.fingerprints(), names, of and [of[i] for i in chosen.numbers.tolist()]
            if part in ("pool", "train"):
                mean, std = chosen.moments()
                channels, size = chosen.channels, list(chosen.size)
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    description = {
        "name": name,
        "title": entry.title,
        "classes": classes,
        "channels": channels,
        "size": size,
        "counts": counts,
        "quarantined": len(bad),
        "shorter_side": entry.image.shorter_side if entry.image else None,
        "white": white.value,
        "split": {key: value for key, value in vars(entry.split).items() if value is not None},
        "mean": np.round(mean, 6).tolist(),
        "std": np.round(std, 6).tolist(),
        "pixels_sha256": hashes,
    }
    write_json(folder / "training" / "dataset.json", description)
    described = {part: {"images": len(p.labels), "pixels_sha256": p.sha256()} for part, p in published.items()}
    persons = {part: kinds(p.labels) for part, p in published.items() if p.cameras is not None}
    for part, found in persons.items():
        described[part] |= found
    if persons:
        re_ranking = entry.re_ranking and dict(vars(entry.re_ranking))
        write_json(folder / "test" / "protocol.json", {"re_ranking": re_ranking})
    return write_report(folder / "report", entry, counts, described, bad, duplicates(fingerprints), white)


def kinds(identities: np.ndarray) -> dict[str, int]:
    """Of a published split of persons to be found again."""
    return {
        "persons": len(set(identities.tolist()) - {DISTRACTOR, JUNK}),
        "distractors": int((identities == DISTRACTOR).sum()),
        "junk_left_out": int((identities == JUNK).sum()),
    }


def prepare_tests(
    name: str, entry: "DataEntry", reader: ModuleType, raw: Path, folder: Path, classes: list[str]
) -> dict[str, Any]:
    """The same for a data set of test images alone: a file each of its test sets, and no mean and deviation,
    for those belong to the data set whose networks it tests."""
    counts, hashes = {}, {}
    with reading(raw):
        for part, tensors in reader.tests(raw, entry):
            labelled(f"{name}: {part}", tensors["images"], tensors["labels"])
            if tensors["labels"].max() >= len(classes):
                raise DataError(
                    f"{name}: label {tensors['labels'].max()} in {part}; allowed: 0 to {len(classes) - 1}, the classes"
                )
            write_tensors(folder / "test" / f"{part}.safetensors", tensors)
            counts[part], hashes[part] = len(tensors["labels"]), pixels_sha256(tensors["images"], tensors["labels"])
            _, channels, *size = tensors["images"].shape
    if not counts:
        raise DataError(f"{name}: no test images in {raw}; fetch it again")
    counted(name, entry, counts)
    description = {
        "name": name,
        "title": entry.title,
        "tests": entry.tests,
        "classes": classes,
        "channels": channels,
        "size": size,
        "counts": counts,
        "pixels_sha256": hashes,
    }
    write_json(folder / "training" / "dataset.json", description)
    return write_report(folder / "report", entry, counts, {}, [], [], White())


def class_names(name: str, entry: "DataEntry", reader: ModuleType, raw: Path) -> list[str]:
    """The catalogue's, which must be those of the files if these name them; the files' if it has none."""
    named = reader.classes(raw) if hasattr(reader, "classes") else None
    if entry.classes is None and named is None:
        raise DataError(f"{name}: its files do not name the classes; write them under `classes` in the catalogue")
    if entry.classes is not None and named is not None and entry.classes != named:
        raise DataError(f"{name}: the catalogue's `classes` are not those of the files, in their order; correct them")
    return list(named or entry.classes or [])


def read_published(
    name: str, entry: "DataEntry", reader: ModuleType, raw: Path, spool: Path
) -> tuple[dict[str, Pixels | Packed], dict[str, list[str]], list[Quarantined], White]:
    """The published splits, by name, of usable images; of those of image files, the names of all their files, by
    the published numbers; what cannot be used; and what became white of images of 16 bits."""
    white = White()
    if hasattr(reader, "read"):
        splits = {part: labelled(f"{raw}: {part}", *arrays) for part, arrays in reader.read(raw).items()}
        counted(name, entry, {part: len(labels) for part, (_, labels) in splits.items()})
        forms = {part: images.shape[1:] for part, (images, _) in splits.items()}
        if len(set(forms.values())) > 1:
            raise DataError(
                f"{raw}: images of {forms}, channels first; allowed: one form in all splits; fetch it again"
            )
        return {part: Pixels(*arrays, np.arange(len(arrays[1]))) for part, arrays in splits.items()}, {}, [], white
    form = entry.image
    if form is None:
        raise DataError(f"{name}: no `image` in the catalogue; write the size and channels of its images there")
    splits = reader.image_files(raw, entry)
    counted(name, entry, {part: len(files.names) for part, files in splits.items()})
    published: dict[str, Pixels | Packed] = {}
    bad: list[Quarantined] = []
    for part in sorted(splits, key=lambda part: part not in ("train", "all")):  # whose white is that of all
        files = splits[part]
        if form.shorter_side is None or files.cameras is not None:
            height, width = form.size
            images, kept, unusable = decoded(part, files, (height, width), form.channels, white)
            cameras = None if files.cameras is None else files.cameras[kept]
            published[part] = Pixels(images, files.labels[kept], kept, cameras)
        else:
            published[part], unusable = spooled(part, files, form, form.shorter_side, spool / part, white)
        bad += unusable
        if not len(published[part].labels):
            most = commonest(image.reason for image in unusable)
            raise DataError(f"{name}: none of the {len(files.names)} files of {part!r} can be used; mostly: {most}")
    return {part: published[part] for part in splits}, {part: f.names for part, f in splits.items()}, bad, white


def counted(name: str, entry: "DataEntry", found: dict[str, int]) -> None:
    """DataError unless each split has as many images as the catalogue says."""
    if entry.images is not None and entry.images != found:
        raise DataError(f"{name}: {found} images in the files, {entry.images} in the catalogue's `images`")


# ---- the files ----


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_report(
    folder: Path,
    entry: "DataEntry",
    counts: dict[str, int],
    published: dict[str, dict[str, Any]],
    bad: list[Quarantined],
    twice: list[dict[str, Any]],
    white: White,
) -> dict[str, Any]:
    """report.json, and one line for each image that could not be used and for each that two splits share."""
    pairs = [f"{a}, {b}" for a, b in itertools.combinations(counts, 2)] if published else []
    report = {
        "licence": entry.licence,
        "citation": entry.citation,
        "counts": counts,
        "published": published,
        "quarantined": len(bad),
        "reasons": dict(Counter(image.reason for image in bad).most_common()),
        "white": white.value,
        "duplicates": {pair: sum(row["splits"] == pair for row in twice) for pair in pairs},
        "duplicates_with_another_label": sum(row["labels"] == "different" for row in twice),
    }
    write_csv(folder / "quarantine.csv", ("split", "name", "reason"), [vars(image) for image in bad])
    write_csv(folder / "duplicates.csv", DUPLICATES, twice)
    write_json(folder / "report.json", report)
    return report


def write_csv(path: Path, columns: tuple[str, ...], rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(path, csv_of([columns, *([row[column] for column in columns] for row in rows)]))


def duplicates(fingerprints: dict[str, tuple[list[bytes], list[str], list[str] | None]]) -> list[dict[str, Any]]:
    """Images of one split whose pixels stand in an earlier one too, by their rows in both files, and by the names of
    the files that they were, where these are known.

    fingerprints: of each split's images, the names of their classes or persons, and those of their files."""
    rows = []
    for (a, (earlier, labels, files)), (b, (later, others, further)) in itertools.combinations(fingerprints.items(), 2):
        first = {pixels: i for i, pixels in reversed(list(enumerate(earlier)))}
        for j, pixels in enumerate(later):
            if pixels in first:
                i = first[pixels]
                same = "equal" if labels[i] == others[j] else "different"
                names = {"first_name": files[i] if files else "", "second_name": further[j] if further else ""}
                rows.append({"splits": f"{a}, {b}", "first": i, "second": j, "labels": same} | names)
    return rows
