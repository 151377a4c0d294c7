"""Losses that several methods share.  Logits are N x K floats, targets int64 of N."""

import torch.nn.functional as F
from torch import Tensor


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, reduction: str = "batchmean") -> Tensor:
    """KL(softmax(teacher/T) || softmax(student/T)); Hinton et al. 2015 without the factor T^2.

    The teacher's gradient is cut.  `reduction="batchmean"` sums over classes and averages over the
    batch; "mean" also divides by K, as a bare `nn.KLDivLoss()` does in the public code of Tf-KD and
    DR-KD.
    """
    total = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    return total / {"batchmean": student.shape[0], "mean": student.numel()}[reduction]


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, epsilon: Tensor | float) -> Tensor:
    """(1 - epsilon) CE(z, y) + epsilon CE(z, uniform): label smoothing whose epsilon may be a tensor of no
    dimension, which torch's own does not take and a CUDA graph needs."""
    log_probabilities = F.log_softmax(logits, dim=1)
    return (1 - epsilon) * F.nll_loss(log_probabilities, targets) - epsilon * log_probabilities.mean()


def mixed_cross_entropy(logits: Tensor, targets: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share CE(z, y) + (1 - share) CE(z, y') of blended images; share: N, of the label `targets`."""
    own = F.cross_entropy(logits, targets, reduction="none")
    other = F.cross_entropy(logits, partners, reduction="none")
    return (share * own + (1 - share) * other).mean()
