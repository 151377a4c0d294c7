"""Split a data set and pack each split into one file.

Where the publisher gives a test split, it is kept whole; otherwise test is what train and
validation leave.  Train and validation are drawn stratified by class from one seed, unless both are
given, and the indices of every split are kept in its file.  Splits of persons to be found again (query,
gallery) are test, and kept but for junk.

A reader is a module of this package with `read(raw)` -> {"train", "test"} or {"all"}, each (images uint8
N x C x H x W, labels int64 N), or with `image_files(raw, entry)` -> the same of
`selfdistill.data.images.ImageFiles`; and perhaps with `classes(raw)`, the names in the files.  A reader of test
images alone has `tests(raw, entry)`, which yields (name, tensors).
"""

import itertools
import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np

from selfdistill.data.images import DISTRACTOR, JUNK, Quarantined, csv_of, decoded
from selfdistill.data.packing import spooled
from selfdistill.data.splits import Pixels, pixels_sha256, split, write_tensors
from selfdistill.files import write_atomically

DUPLICATES = "splits", "first", "second", "labels", "first_name", "second_name"  # columns
FOLDERS = {"train": "training", "validation": "training"}  # all else is test


def prepare(name: str, entry, raw: Path, prepared: Path) -> dict:
    """Write `prepared`/`name`/training (train, validation and dataset.json) and `prepared`/`name`/test,
    apart, so that training does not even depend on the test images, and `prepared`/`name`/report.  A split is
    a safetensors file: images uint8 N x C x H x W, labels int64 N, indices int64 N in the published order;
    or, for query and gallery, identities and cameras in place of labels; or, for training images that
    `entry.image.shorter_side` says to pack, what `selfdistill.data.prepared.packed` reads.  Beside query and
    gallery stands `protocol.json` with `entry.re_ranking`.  Returns what report.json says."""
    reader = import_module(f"selfdistill.data.{entry.reader}")
    folder, spool = prepared / name, prepared / f"{name}.spool"
    if not any(hasattr(reader, form) for form in (("read", "image_files") if entry.split else ("tests",))):
        raise ValueError(
            f"{name}: {entry.reader}.py reads no images of classes, of which alone this stage makes splits"
        )
    classes = class_names(name, entry, reader, raw / name)
    if entry.split is None:
        return prepare_tests(name, entry, reader, raw / name, folder, classes)
    try:
        published, files, bad = read_published(name, entry, reader, raw / name, spool)
        found = max(int(source.labels.max()) + 1 for source in published.values() if source.cameras is None)
        if found > len(classes):
            raise ValueError(f"{name}: {found} classes in the files, {len(classes)} in the catalogue's `classes`")
        hashes, counts, fingerprints = {}, {}, {}
        for part, (source, rows) in split(published, entry.split).items():
            chosen = published[source].select(rows)
            hashes[part], counts[part] = chosen.write(folder / FOLDERS.get(part, "test"), part), len(rows)
            labels = chosen.labels.tolist()
            names = [classes[i] for i in labels] if chosen.cameras is None else list(map(str, labels))
            of = files.get(source)
            fingerprints[part] = chosen.fingerprints(), names, of and [of[i] for i in chosen.numbers.tolist()]
            if part == "train":
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
        "split": dict(vars(entry.split)),
        "mean": np.round(mean, 6).tolist(),
        "std": np.round(std, 6).tolist(),
        "pixels_sha256": hashes,
    }
    write_json(folder / "training" / "dataset.json", description)
    whole = {part: {"images": len(p.labels), "pixels_sha256": p.sha256()} for part, p in published.items()}
    persons = {part: kinds(p.labels) for part, p in published.items() if p.cameras is not None}
    for part, found in persons.items():
        whole[part] |= found
    if persons:
        re_ranking = entry.re_ranking and dict(vars(entry.re_ranking))
        write_json(folder / "test" / "protocol.json", {"re_ranking": re_ranking})
    return write_report(folder / "report", entry, counts, whole, bad, duplicates(fingerprints))


def kinds(identities: np.ndarray) -> dict[str, int]:
    """Of a published split of persons to be found again."""
    return {
        "persons": len(set(identities.tolist()) - {DISTRACTOR, JUNK}),
        "distractors": int((identities == DISTRACTOR).sum()),
        "junk_left_out": int((identities == JUNK).sum()),
    }


def prepare_tests(name: str, entry, reader, raw: Path, folder: Path, classes: list[str]) -> dict:
    """The same for a data set of test images alone: a file each of its test sets, and no mean and deviation,
    for those belong to the data set whose networks it tests."""
    counts, hashes = {}, {}
    for part, tensors in reader.tests(raw, entry):
        if int(tensors["labels"].max()) >= len(classes):
            raise ValueError(f"{name}: label {tensors['labels'].max()} in {part}, and {len(classes)} classes")
        write_tensors(folder / "test" / f"{part}.safetensors", tensors)
        counts[part], hashes[part] = len(tensors["labels"]), pixels_sha256(tensors["images"], tensors["labels"])
        _, channels, *size = tensors["images"].shape
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
    return write_report(folder / "report", entry, counts, {}, [], [])


def class_names(name: str, entry, reader, raw: Path) -> list[str]:
    """The catalogue's, which must be those of the files if these name them; the files' if it has none."""
    named = reader.classes(raw) if hasattr(reader, "classes") else None
    if entry.classes is None and named is None:
        raise ValueError(f"{name}: its files do not name the classes; write them under `classes` in the catalogue")
    if None not in (entry.classes, named) and list(entry.classes) != named:
        raise ValueError(f"{name}: the catalogue's `classes` are not those of the files, in their order; correct them")
    return list(named or entry.classes)


def read_published(name: str, entry, reader, raw: Path, spool: Path) -> tuple[dict, dict, list[Quarantined]]:
    """The published splits, by name, of usable images; of those of image files, the names of all their files, by
    the published numbers; and what cannot be used."""
    if hasattr(reader, "read"):
        splits = reader.read(raw)
        counted(name, entry, {part: len(labels) for part, (_, labels) in splits.items()})
        return {part: Pixels(*arrays, np.arange(len(arrays[1]))) for part, arrays in splits.items()}, {}, []
    published, bad, form = {}, [], entry.image
    if form is None:
        raise ValueError(f"{name}: no `image` in the catalogue; write the size and channels of its images there")
    splits = reader.image_files(raw, entry)
    counted(name, entry, {part: len(files.names) for part, files in splits.items()})
    for part, files in splits.items():
        if form.shorter_side is None or files.cameras is not None:
            images, kept, unusable = decoded(part, files, tuple(form.size), form.channels)
            cameras = None if files.cameras is None else files.cameras[kept]
            published[part] = Pixels(images, files.labels[kept], kept, cameras)
        else:
            published[part], unusable = spooled(part, files, form, spool / part)
        bad += unusable
        if not len(published[part].labels):
            raise ValueError(f"{name}: none of the {len(files.names)} files of {part!r} can be used: {bad[-1].reason}")
    return published, {part: files.names for part, files in splits.items()}, bad


def counted(name: str, entry, found: dict[str, int]) -> None:
    if entry.images is not None and entry.images != found:
        raise ValueError(f"{name}: {found} images in the files, {entry.images} in the catalogue's `images`")


# ---- the files ----


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_report(folder: Path, entry, counts: dict, published: dict, bad: list[Quarantined], twice: list[dict]) -> dict:
    """report.json, and one line for each image that could not be used and for each that two splits share."""
    pairs = [f"{a}, {b}" for a, b in itertools.combinations(counts, 2)] if published else []
    report = {
        "licence": entry.licence,
        "citation": entry.citation,
        "counts": counts,
        "published": published,
        "quarantined": len(bad),
        "duplicates": {pair: sum(row["splits"] == pair for row in twice) for pair in pairs},
        "duplicates_with_another_label": sum(row["labels"] == "different" for row in twice),
    }
    write_csv(folder / "quarantine.csv", ("split", "name", "reason"), [vars(image) for image in bad])
    write_csv(folder / "duplicates.csv", DUPLICATES, twice)
    write_json(folder / "report.json", report)
    return report


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    write_atomically(path, csv_of([columns, *([row[column] for column in columns] for row in rows)]))


def duplicates(fingerprints: dict[str, tuple[list[bytes], list[str], list[str] | None]]) -> list[dict]:
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
