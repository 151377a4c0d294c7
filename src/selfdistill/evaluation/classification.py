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
    confidence, predicted = log_probabilities.exp().max(dim=1)
    correct = (predicted == labels).double()
    return {
        "accuracy": correct.mean().item(),
        "nll": F.nll_loss(log_probabilities, labels).item(),
        "ece": calibration_error(confidence, correct),
    }


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """sum over bins of (share of images in it) x |accuracy - mean confidence|; bins are (a, b]."""
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    which = torch.bucketize(confidence.double(), edges)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, (correct - confidence).double())
    return (gap.abs().sum() / len(confidence)).item()


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
