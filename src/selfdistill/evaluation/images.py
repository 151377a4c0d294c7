"""Classify image files with a trained network."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from selfdistill.evaluation.anytime import budget_thresholds, leave_early, leaving_macs
from selfdistill.evaluation.anytime import confidence as certainty
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.stored import predictions_of
from selfdistill.exports.network import is_exported, open_network
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict
from selfdistill.outside import OutsideError, reason_of, regular_bytes

TOGETHER = 2**22  # values of the images that are classified at once: 64 of 3 x 148 x 148


class PredictError(UserError):
    """The run, the exit or an image cannot be used; the message names it."""


@dataclass(frozen=True)
class Leaving:
    """At which exit images leave: always `number`, from 1, or the first that reaches its threshold.

    macs: of an image that leaves so at each exit.
    """

    number: int
    thresholds: Sequence[float] = ()
    macs: Sequence[int] = ()


def classify(
    folder: Path,
    images: list[Path],
    exit_number: int | None,
    invert: bool = False,
    confidence: float | None = None,
    budget: float | None = None,
) -> Iterator[dict[str, Any] | PredictError]:
    """Per image, in their order: file, class, probability, exit, exits, and the probability of each class; or, not
    raised, why it cannot be read.  A few images are in memory at a time.

    folder: a run's, or one that was exported.  images: files, and folders, whose files are taken one by one as
    preparing takes them: below it in the order of their names, without hidden ones and those that systems make.
    exit_number: 1 (shallowest) to the network's last; None for the last.
    confidence: each image leaves at the first exit that gives a class at least this probability.  budget: the same with
    a threshold of each exit, so that the run's validation images cost at most so many million multiply-adds on average.
    With either, `million_macs` says what the image cost.
    Raises PredictError, and of `open_network` whatever is wrong with the folder.
    """
    opened = open_network(folder)
    network, dataset = opened.network, opened.data
    leaving = leaving_of(folder, network, exit_number, confidence, budget)
    files = (file for path in images for file in files_of(path))
    together = min(1000, max(1, TOGETHER // (dataset.channels * dataset.size[0] * dataset.size[1])))
    while some := list(islice(files, together)):
        read = [read_or_refused(file, dataset, invert) for file in some]
        usable = [pixels for pixels in read if isinstance(pixels, np.ndarray)]
        found: Iterator[tuple[int, list[float]]] = iter(())
        if usable:
            taken, logits = answers(network, dataset, torch.from_numpy(np.stack(usable)), leaving)
            rows = finite(logits[None], opened.weights, "given")[0].softmax(dim=1).tolist()
            found = zip(taken, rows, strict=True)
        for path, pixels in zip(some, read, strict=True):
            if isinstance(pixels, PredictError):
                yield pixels
                continue
            place, row = next(found)
            yield {
                "file": str(path),
                "class": dataset.classes[row.index(max(row))],
                "probability": max(row),
                "exit": place + 1,
                "exits": network.exit_count,
                **({"million_macs": leaving.macs[place] / 1e6} if leaving.thresholds else {}),
                "probabilities": dict(zip(dataset.classes, row, strict=True)),
            }


def answers(
    network: SectionedNetwork, dataset: Dataset, images: torch.Tensor, leaving: Leaving
) -> tuple[list[int], torch.Tensor]:
    """The exit that each image leaves at, from 0, and its logits there, N x K; images: uint8 N x C x H x W."""
    if not leaving.thresholds:
        return [leaving.number - 1] * len(images), predict(network, dataset, images)[leaving.number - 1]
    # one by one: the answer to an image does not depend on those beside it, not even in its last bit
    found = [leave_early(network, one, leaving.thresholds) for one in dataset.normalise(images).split(1)]
    return [int(place) for place, _ in found], torch.cat([logits for _, logits in found])


def leaving_of(
    folder: Path, network: SectionedNetwork, number: int | None, confidence: float | None, budget: float | None
) -> Leaving:
    """What `classify` is asked for.  PredictError: it is not allowed, or the network has no exits to leave at."""
    exits = network.exit_count
    if sum(value is not None for value in (number, confidence, budget)) > 1:
        raise PredictError("--exit, --confidence and --budget: allowed: one of them")
    if number is not None and not 1 <= number <= exits:
        raise PredictError(
            f"--exit {number}: this network has {exits} exit{'s' if exits > 1 else ''}; allowed: 1 to {exits}"
        )
    if confidence is None and budget is None:
        return Leaving(exits if number is None else number)
    given = f"--confidence {confidence:.15g}" if budget is None else f"--budget {budget:.15g}"
    if exits == 1:
        raise PredictError(f"{given}: this network has 1 exit; allowed: of one with several, as byot trains it")
    macs = leaving_macs(network)
    if budget is None:
        assert confidence is not None
        if not 0 < confidence <= 1:
            raise PredictError(f"{given} is not allowed; allowed: a probability, above 0, at most 1")
        return Leaving(exits, [confidence] * (exits - 1), macs)
    if not macs[0] / 1e6 <= budget < math.inf:
        raise PredictError(f"{given} is not allowed; allowed: from {macs[0] / 1e6:.15g}, what the first exit costs")
    if is_exported(folder):
        raise PredictError(f"{folder}: was exported, without predictions of validation images; --budget needs a run's")
    sure = certainty(predictions_of(folder).validation["last"])
    # the product may lie a rounding below the cost that the budget is
    return Leaving(exits, budget_thresholds(sure, macs, max(1e6 * budget, macs[0])), macs)


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
