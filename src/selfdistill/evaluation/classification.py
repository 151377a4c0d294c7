"""Metrics of predicted logits against labels, in double precision."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.data.prepared import Dataset, read_split
from selfdistill.errors import UserError
from selfdistill.models.sections import SectionedNetwork
from selfdistill.models.trained import predict


@dataclass(frozen=True)
class ClassTest:
    """A test split of images of classes: uint8 N x C x H x W, and labels, int64 N, on one device."""

    images: Tensor
    labels: Tensor

    @classmethod
    def read(cls, folder: Path, device: str) -> "ClassTest":
        return cls(*read_split(folder, "test", device))

    def truth(self) -> dict[str, Tensor]:
        return {"labels": self.labels.cpu()}

    def outputs(self, network: SectionedNetwork, dataset: Dataset) -> Tensor:
        """Logits, exits x N x K floats, on the CPU."""
        return predict(network, dataset, self.images).cpu()

    def metrics(self, logits: Tensor) -> dict[str, float]:
        return metrics(logits, self.labels.cpu())

    def of_exits(self, logits: Tensor) -> dict:
        """The metrics of every exit, shallow to deep, and of all of them."""
        several = {"ensemble": self.metrics(ensemble(logits))} if len(logits) > 1 else {}
        return {"exits": [self.metrics(z) for z in logits], **several}

    def together(self, logits: Tensor) -> dict[str, float]:
        """Of several networks, networks x N x K."""
        return self.metrics(average_probabilities(logits))


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
