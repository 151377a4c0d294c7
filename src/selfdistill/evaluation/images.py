"""Classify image files with a trained network."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfdistill.data.folder import left_out
from selfdistill.data.images import LARGEST, UnusableImageError, packed_form, sized, upright
from selfdistill.data.prepared import Dataset
from selfdistill.data.prepared.packed import centre_cropped
from selfdistill.errors import UserError
from selfdistill.evaluation.described import dataset_of
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.weights import refuse_imported
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import load_network, predict, read_run
from selfdistill.outside import JSON, OutsideError, reason_of, regular_bytes, untrusted

TOGETHER = 2**22  # values of the images that are classified at once: 64 of 3 x 148 x 148
NAME_A_RUN = "name a folder of results/runs/MODEL/VARIANT"


class PredictError(UserError):
    """The run, the exit or an image cannot be used; the message names it."""


def classify(
    folder: Path, images: list[Path], exit_number: int | None, invert: bool = False
) -> Iterator[dict[str, Any] | PredictError]:
    """Per image, in their order: file, class, probability, exit, exits, and the probability of each class; or, not
    raised, why it cannot be read.  A few images are in memory at a time.

    folder: a run's.  images: files, and folders, whose files are taken one by one as preparing takes them: below it in
    the order of their names, without hidden ones and those that systems make.  exit_number: 1 (shallowest) to the
    network's last; None for the last.
    Raises PredictError, and WeightsError for a run that was imported without its weights.
    """
    network, dataset = opened(folder)
    exits = network.exit_count
    number = exits if exit_number is None else exit_number
    if not 1 <= number <= exits:
        raise PredictError(
            f"--exit {number}: this network has {exits} exit{'s' if exits > 1 else ''}; allowed: 1 to {exits}"
        )
    files = (file for path in images for file in files_of(path))
    together = min(1000, max(1, TOGETHER // (dataset.channels * dataset.size[0] * dataset.size[1])))
    while some := list(islice(files, together)):
        read = [read_or_refused(file, dataset, invert) for file in some]
        usable = [pixels for pixels in read if isinstance(pixels, np.ndarray)]
        found: Iterator[list[float]] = iter(())
        if usable:
            logits = predict(network, dataset, torch.from_numpy(np.stack(usable)))[number - 1 : number]
            found = iter(finite(logits, folder / "weights.safetensors", "given")[0].softmax(dim=1).tolist())
        for path, pixels in zip(some, read, strict=True):
            if isinstance(pixels, PredictError):
                yield pixels
                continue
            row = next(found)
            yield {
                "file": str(path),
                "class": dataset.classes[row.index(max(row))],
                "probability": max(row),
                "exit": number,
                "exits": exits,
                "probabilities": dict(zip(dataset.classes, row, strict=True)),
            }


def opened(folder: Path) -> tuple[SectionedNetwork, Dataset]:
    """The network of a run's folder and the data set that it was trained on, whatever lies there."""
    with untrusted(PredictError, folder, "no trained run", NAME_A_RUN):
        refuse_imported(folder)
        if not os.path.lexists(folder / "run.json"):
            raise PredictError(f"{folder}: no trained run (no run.json in it); {NAME_A_RUN}")
        with untrusted(PredictError, folder / "run.json", "cannot be read", NAME_A_RUN):
            regular_bytes(folder / "run.json", JSON)
        dataset = dataset_of(read_run(folder), folder / "run.json")
        if "gallery" in dataset.pixels_sha256:
            raise PredictError(
                f"{folder}: it was trained to find persons again and has no class for another image; `selfdistill "
                "evaluate` ranks its gallery"
            )
        return load_network(folder)[0], dataset


def files_of(path: Path) -> Iterator[Path | PredictError]:
    """The path itself, or the files of a folder."""
    if not os.path.isdir(path):
        yield path
        return
    found = []
    failures: list[OSError] = []
    for place, folders, names in os.walk(path, onerror=failures.append):
        folders[:] = [name for name in folders if not left_out(name)]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in (*names, *links) if not left_out(name)]
    yield from sorted(found)
    yield from (PredictError(f"{error.filename}: {reason_of(error)}") for error in failures)
    if not found and not failures:
        yield PredictError(f"{path}: a folder without files")


def read_or_refused(file: Path | PredictError, dataset: Dataset, invert: bool) -> np.ndarray | PredictError:
    """The pixels, or why there are none."""
    try:
        return read_image(file, dataset, invert) if isinstance(file, Path) else file
    except PredictError as error:
        return error


def read_image(path: Path, dataset: Dataset, invert: bool) -> np.ndarray:
    """An image file as uint8 C x H x W, in the channels and size of the data set, as preparing sees it."""
    try:
        content = regular_bytes(path, LARGEST)
        if dataset.shorter_side is None:
            pixels = sized(upright(content, dataset.white), dataset.size, dataset.channels)
        else:
            smaller, _ = packed_form(content, dataset.shorter_side, dataset.channels, dataset.white)
            pixels = centre_cropped(smaller, dataset.size, dataset.channels).transpose(2, 0, 1)
    except (OSError, OutsideError, UnusableImageError, MemoryError) as error:
        linked = os.path.islink(path) and os.path.isdir(path)
        reason = "a link to a folder, which is not followed" if linked else reason_of(error)
        raise PredictError(f"{path}: no image that can be read ({reason})") from None
    return 255 - pixels if invert else pixels
