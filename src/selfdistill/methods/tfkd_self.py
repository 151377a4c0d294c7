"""Tf-KD_self, teacher-free self-training (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "TfKDSelf",
    "needs": ["teacher"],
    "hyper": {
        "alpha": {"default": 0.95, "allowed": [0.0, 1.0]},
        "temperature": {"default": 6.0, "allowed": [0.01, 1000.0]},
        "multiplier": {"default": 50.0, "allowed": [0.0, 10000.0]},
        "reduction": {"default": "mean", "choices": ["mean", "batchmean"]},
    },
}


def tfkd_self_terms(
    logits: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    multiplier: float,
    reduction: str,
) -> dict[str, Tensor]:
    """(1 - alpha) CE(z, y) + alpha T^2 m KL(softmax(v/T) || softmax(z/T)), with
    the public code's factors.  logits, teacher: N x K, of the student and of its trained, frozen twin."""
    kl = softened_kl(logits, teacher, temperature, reduction)
    return {
        "cross_entropy": (1 - alpha) * F.cross_entropy(logits, targets),
        "self_distillation": alpha * temperature**2 * multiplier * kl,
    }


class TfKDSelf(Method):
    alpha: float
    temperature: float
    multiplier: float
    reduction: str

    def terms(self, step: Step) -> dict[str, Tensor]:
        hyper = {name: getattr(self, name) for name in ABOUT["hyper"]}
        return tfkd_self_terms(step.student.logits[-1], step.teacher.logits[-1], step.targets, **hyper)
