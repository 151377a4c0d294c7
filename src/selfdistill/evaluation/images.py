"""Classify image files with a trained network."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from selfdistill.data.images import UnusableImageError, packed_form, sized, upright
from selfdistill.data.prepared import Dataset
from selfdistill.data.prepared.packed import centre_cropped
from selfdistill.errors import UserError
from selfdistill.evaluation.finite import finite
from selfdistill.evaluation.weights import refuse_imported
from selfdistill.models.trained import load_network, predict


class PredictError(UserError):
    """The run, the exit or an image cannot be used; the message names it."""


def classify(folder: Path, images: list[Path], exit_number: int | None, invert: bool = False) -> list[dict]:
    """Per image: file, class, probability, exit, exits, and the probability of each class.

    folder: a run's.  exit_number: 1 (shallowest) to the network's last; None for the last.
    Raises PredictError, and WeightsError for a run that was imported without its weights.
    """
    refuse_imported(folder)
    try:
        network, record = load_network(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise PredictError(f"{folder}: no trained run ({error}); name a folder of results/runs/MODEL/VARIANT") from None
    dataset = Dataset(**record["dataset"])
    exits = network.exit_count
    number = exits if exit_number is None else exit_number
    if not 1 <= number <= exits:
        raise PredictError(
            f"--exit {number}: this network has {exits} exit{'s' if exits > 1 else ''}; allowed: 1 to {exits}"
        )
    pixels = torch.from_numpy(np.stack([read_image(p, dataset, invert) for p in images]))
    logits = predict(network, dataset, pixels)[number - 1 : number]
    probabilities = finite(logits, folder / "weights.safetensors", "given")[0].softmax(dim=1)
    return [
        {
            "file": str(path),
            "class": dataset.classes[int(row.argmax())],
            "probability": float(row.max()),
            "exit": number,
            "exits": exits,
            "probabilities": dict(zip(dataset.classes, row.tolist(), strict=True)),
        }
        for path, row in zip(images, probabilities, strict=True)
    ]


def read_image(path: Path, dataset: Dataset, invert: bool) -> np.ndarray:
    """An image file as uint8 C x H x W, in the channels and size of the data set, as preparing sees it."""
    try:
        content = path.read_bytes()
        if dataset.shorter_side is None:
            pixels = sized(upright(content, dataset.white), dataset.size, dataset.channels)
        else:
            smaller, _ = packed_form(content, dataset.shorter_side, dataset.channels, dataset.white)
            pixels = centre_cropped(smaller, dataset.size, dataset.channels).transpose(2, 0, 1)
    except (OSError, UnusableImageError) as error:
        raise PredictError(f"{path}: no image that can be read ({error})") from None
    return 255 - pixels if invert else pixels
