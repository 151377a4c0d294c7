"""Whether a network is less sure of images of other classes than of those that it was trained for."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from selfdistill.data.images import sized
from selfdistill.errors import UserError
from selfdistill.evaluation.calibration import log_odds
from selfdistill.evaluation.splits import ClassImages

if TYPE_CHECKING:
    from torch import Tensor

    from selfdistill.evaluation.probed import Probed

ABOUT = {
    "title": "Images of other classes",
    "needs": ["network", "others"],
    "settings": {"images": {"default": 10_000, "allowed": [2, 1_000_000]}},
    "keys": {"score": "Score", "exit": "Exit"},
    "shown": {"exit": "deepest"},
    "beside": True,
    "numbers": {
        "auroc": {"title": "Area under the ROC curve", "unit": "%", "better": "higher", "judged": True},
        "fpr": {"title": "False positives at 95 % true ones", "unit": "%", "better": "lower", "judged": False},
    },
}
TRUE_POSITIVES = 0.95


def analyse(inputs: "Probed", images: int) -> list[dict[str, Any]]:
    """One row a score and exit, of `images` test images at most of either data set.

    score: `softmax`, the largest probability (Hendrycks and Gimpel 2017, arXiv 1610.02136), as its odds, and `energy`,
    the logarithm of the sum of the logits' exponentials (Liu et al. 2020, arXiv 2010.03759, at temperature 1).  Images
    of the run's own classes are the positives.
    Raises UserError where a class of the probe's data set is one of the run's.
    """
    refuse_known(inputs.dataset.classes, inputs.facts)
    own, others = inputs.test(images), inputs.test(images, inputs.prepared)
    others = ClassImages(brought(others.images, inputs.dataset.size, inputs.dataset.channels), others.labels)
    known = inputs.logits(own, f"{inputs.dataset.name} test").double()
    strange = inputs.logits(others, f"{inputs.facts['name']} test").double()
    rows = []
    for score, of in (("softmax", log_odds), ("energy", energy)):
        for name, inside, outside in zip(inputs.exits, of(known), of(strange), strict=True):
            found = {"auroc": auroc(inside, outside), "fpr": false_positives(inside, outside)}
            rows.append({"score": score, "exit": name, **found})
    return rows


def refuse_known(classes: list[str], others: dict[str, Any]) -> None:
    """UserError: a class of another prepared data set has the name of one of these, up to its first comma."""
    known, named = ({name.partition(",")[0].casefold() for name in names} for names in (classes, others["classes"]))
    if shared := sorted(known & named):
        raise UserError(
            f"{others['name']}: {len(shared)} of its classes are those that the network knows, such as {shared[0]!r}; "
            "allowed with ood: a data set of other classes"
        )


def energy(logits: "Tensor") -> "Tensor":
    """... x K logits to the negative free energy: the larger, the likelier an image is of the known classes."""
    return logits.logsumexp(dim=-1)


def auroc(inside: "Tensor", outside: "Tensor") -> float:
    """The probability that a score of `inside` lies above one of `outside`, ties counting half: the area under the
    curve of true against false positives."""
    values, places = torch.cat([inside, outside]).unique(return_inverse=True)
    positives, negatives = (
        torch.bincount(part, minlength=len(values)).double() for part in places.split([len(inside), len(outside)])
    )
    below = negatives.cumsum(dim=0) - negatives
    return ((positives * (below + negatives / 2)).sum() / (len(inside) * len(outside))).item()


def false_positives(inside: "Tensor", outside: "Tensor", wanted: float = TRUE_POSITIVES) -> float:
    """The share of `outside` at or above the highest threshold that a share `wanted` of `inside` reaches."""
    needed = int(np.ceil(wanted * len(inside)))
    threshold = inside.sort(descending=True).values[needed - 1]
    return (outside >= threshold).double().mean().item()


def brought(images: "Tensor", size: tuple[int, int], channels: int) -> "Tensor":
    """uint8 N x C x H x W images of another data set in the size and channels of the network's, made as preparing and
    `selfdistill predict` make them."""
    if list(images.shape[1:]) == [channels, *size]:
        return images
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    pictures = (Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels)
    made = np.stack([sized(picture, (size[0], size[1]), channels) for picture in pictures])
    return torch.from_numpy(made).to(images.device)
