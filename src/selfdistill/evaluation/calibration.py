"""Calibration: whether probabilities are the shares that come true, and the temperature that makes them more so."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.evaluation.classification import beyond, bin_of, brier, calibration_error

LARGEST = 1e300  # of a logit: an infinite one is taken as its limit
PART = 4096  # images at a time, where ImageNet's would take gigabytes
ROOM = 1e6  # how far beyond the differences of logits a temperature is sought


def bounded(logits: Tensor) -> Tensor:
    """In double precision, without infinite ones; what is no number stays none."""
    return logits.double().clamp(-LARGEST, LARGEST)


def confidences(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits N x K: the probability of the class that is told, and whether it is right, 0 or 1; float64 N each."""
    ordered, classes = bounded(logits).sort(
        dim=1, descending=True, stable=True
    )  # added up in one order: ties are exact
    return ordered.softmax(dim=1).amax(dim=1), (classes[:, 0] == labels).double()


def log_odds(logits: Tensor) -> Tensor:
    """... x K logits to log(p / (1 - p)) of the largest probability p, float64: it rises with p, and keeps apart what
    rounds to 1.  The same logits in another order of classes give the same number."""
    ordered = bounded(logits).sort(dim=-1, descending=True).values
    others = ordered[..., 1:]
    # less the logarithm of the sum of the others' exponentials, all of them less the largest of the others
    return ordered[..., 0] - others[..., 0] + others.log_softmax(dim=-1)[..., 0]


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """`ece`, `adaptive_ece` and `classwise_ece`, shares; `nll`, in nats; `brier`.  logits: N x K; labels: int64 N."""
    confidence, correct = confidences(logits, labels)
    return {
        "ece": calibration_error(confidence, correct, bins),
        "adaptive_ece": equal_mass_error(confidence, correct, bins),
        "classwise_ece": classwise_error(bounded(logits).softmax(dim=1), labels, bins),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "brier": brier(bounded(logits), labels),
    }


def shared_by_ties(confidence: Tensor, values: Tensor) -> Tensor:
    """Values N, each replaced by the mean of those of exactly equal confidence, so that no order among equals counts;
    confidence: N, sorted."""
    new = confidence.diff() != 0
    block = torch.cat([new.new_zeros(1), new]).cumsum(0)
    blocks = int(block[-1]) + 1
    sums = torch.zeros(blocks, dtype=torch.float64).index_add_(0, block, values.double())
    return (sums / block.bincount(minlength=blocks))[block]


def equal_mass_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """The calibration error with bins of as many images each, which differ by one at most, in the order of confidence
    (Nguyen and O'Connor, EMNLP 2015): sum over bins of (share of images in it) x |accuracy - mean confidence|."""
    confidence, order = confidence.double().sort()
    gaps = shared_by_ties(confidence, correct[order]) - confidence
    return sum(part.sum().abs().item() for part in gaps.tensor_split(bins)) / len(confidence)


def classwise_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The mean over classes of the calibration error of that class' probability, with equal bins (a, b] of it
    (Kull et al., NeurIPS 2019, equation 3); probabilities: float64 N x K."""
    images, classes = probabilities.shape
    gap = torch.zeros(bins * classes, dtype=torch.float64)
    for part, shown in zip(probabilities.split(PART), labels.split(PART), strict=True):
        which = bin_of(part, bins) + bins * torch.arange(classes)
        gap.index_add_(0, which.flatten(), beyond(part.clone(), shown).flatten())
    return (gap.abs().sum() / (images * classes)).item()


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> list[tuple[float, float, float]]:
    """Of each equal bin (a, b] of confidence: the share of all images that lies in it, that is right in it, and the sum
    of its confidences over all images.  So a mean over runs is that of all their images."""
    which = bin_of(confidence, bins)
    parts = [torch.ones_like(confidence), correct, confidence]
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, which, part.double()) for part in parts]
    return [tuple(row) for row in (torch.stack(sums, dim=1) / len(confidence)).tolist()]


def fitted_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T at which softmax(logits / T) has the lowest mean negative log-likelihood (Guo et al., ICML
    2017, section 4.2); logits: N x K.

    In 1 / T the likelihood is convex; its derivative, the mean of E_p[z] - z_label, has one root, which is found by
    Newton's steps in log(1 / T), kept inside a bracket.  None where no temperature is best: the likelihood rises
    towards 0 where every image is right, and without end where none is better than guessed (here: beyond ROOM times the
    largest difference between an image's largest logit and another).  1 where none differ; NaN where one is no number.
    """
    z = bounded(logits)
    if z.isnan().any():
        return math.nan
    z = z - z.amax(dim=1, keepdim=True)
    gaps = -z[z < 0]
    if not len(gaps):
        return 1.0
    own = z.gather(1, labels[:, None])[:, 0]

    def derivative(u: float) -> tuple[float, float]:
        """The likelihood's in 1 / T = exp(u), and that one's own in u."""
        scale = math.exp(u)
        p = (scale * z).softmax(dim=1)
        mean = (p * z).sum(dim=1)
        variance = (p * (z - mean[:, None]).square()).sum(dim=1)
        return (mean - own).mean().item(), scale * variance.mean().item()

    smallest, largest = max(gaps.min().item(), 1 / LARGEST), gaps.max().item()
    low, high = -math.log(ROOM * largest), math.log(ROOM) - math.log(smallest)
    if derivative(high)[0] <= 0 or derivative(low)[0] >= 0:
        return None
    u = min(max(0.0, low), high)
    for _ in range(200):
        value, slope = derivative(u)
        low, high = (low, u) if value > 0 else (u, high)
        step = u - value / slope if slope > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - u) < 1e-12:
            break
        u = following
    return math.exp(-following)
