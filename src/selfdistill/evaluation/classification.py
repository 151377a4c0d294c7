"""Metrics of predicted logits against labels, in double precision."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import UserError


def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """logits: N x K; labels: int64 N.

    accuracy: share right; nll: mean negative log-likelihood in nats; ece: expected calibration
    error with 15 equal bins of confidence (Guo et al. 2017, equation 3), as a share.
    Raises UserError for no images, and for a single class, where every network is right.
    """
    images, classes = logits.shape
    if images == 0 or classes < 2:
        raise UserError(f"metrics of {images} images and {classes} classes are not defined; allowed: from 1, from 2")
    log_probabilities = F.log_softmax(logits.double(), dim=1)
    confidence = log_probabilities.exp().amax(dim=1)
    # of the logits themselves, as every analysis tells a class: probabilities less than 1e-16 apart round to equals
    correct = (logits.argmax(dim=1) == labels).double()
    return {
        "accuracy": correct.mean().item(),
        "nll": F.nll_loss(log_probabilities, labels).item(),
        "ece": calibration_error(confidence, correct),
    }


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """sum over bins of (share of images in it) x |accuracy - mean confidence|; bins are (a, b]."""
    which = bin_of(confidence, bins)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, (correct - confidence).double())
    return (gap.abs().sum() / len(confidence)).item()


def bin_of(shares: Tensor, bins: int) -> Tensor:
    """In which of the equal bins (a, b] of [0, 1] each share lies, from 0, int64."""
    return torch.bucketize(shares.double(), torch.arange(1, bins, dtype=torch.float64) / bins)


def top_k(logits: Tensor, labels: Tensor, k: int = 5) -> float | None:
    """The share of images whose class is among the k with the highest logits, N x K; of equal logits the class that
    comes first counts as higher.  None where more than k classes are needed to miss it and there are not: K <= k."""
    if logits.shape[1] <= k:
        return None
    logits, place = logits.double(), labels[:, None]
    own = logits.gather(1, place)
    before = (logits == own) & (torch.arange(logits.shape[1], device=logits.device) < place)
    return (((logits > own) | before).sum(dim=1) < k).double().mean().item()


def brier(logits: Tensor, labels: Tensor) -> float:
    """The mean over images of sum over classes of (probability - [it is the class])^2, from 0 to 2 (Brier 1950);
    logits: N x K."""
    return beyond(logits.double().softmax(dim=1), labels).square_().sum(dim=1).mean().item()


def beyond(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities N x K, float64, less 1 for the class that each image shows, in place."""
    place = labels[:, None]
    return probabilities.scatter_add_(1, place, probabilities.new_full(place.shape, -1.0))


def ensemble(logits: Tensor) -> Tensor:
    """The mean of all exits' logits, N x K, as in the journal code of BYOT; logits: exits x N x K."""
    return logits.double().mean(dim=0)


def average_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the networks' mean probabilities, N x K, as born-again networks are ensembled;
    logits: networks x N x K.

    By log-sum-exp: the mean of probabilities that are all 0 to double precision would have the logarithm -inf.
    """
    log_probabilities = F.log_softmax(logits.double(), dim=2)
    return torch.logsumexp(log_probabilities, dim=0) - math.log(len(logits))
