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
