"""Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412)."""

from torch import Tensor

from selfdistill.training.augment import mixup
from selfdistill.training.losses import mixed_cross_entropy
from selfdistill.training.method import Method, Step

ABOUT = {"class": "Mixup", "needs": ["partners"], "hyper": {"alpha": {"default": 1.0, "allowed": [0.001, 100.0]}}}


class Mixup(Method):
    alpha: float

    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        return mixup(images, partners, share), share

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        return {"cross_entropy": mixed_cross_entropy(logits, step.targets, step.partner_targets, step.share)}
