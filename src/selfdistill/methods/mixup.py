"""Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412)."""

from torch import Tensor

from selfdistill.training.augment import mixup
from selfdistill.training.losses import mixed_cross_entropy
from selfdistill.training.method import Method

ABOUT = {
    "class": "Mixup",
    "title": "Mixup",
    "name": "Mixup",
    "paper": "1710.09412",
    "group": "controls",
    "needs": ["partners"],
    "cost": 1.0,
    "hyper": {
        "alpha": {
            "default": 1.0,
            "allowed": [0.001, 100.0],
            "meaning": "of the Beta(alpha, alpha) distribution of shares, drawn once a batch",
            "source": "the paper, section 3.2 (CIFAR)",
        },
    },
}


class Mixup(Method):
    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        return mixup(images, partners, share), share

    def terms(self, step):
        logits = step.student.logits[-1]
        return {"cross_entropy": mixed_cross_entropy(logits, step.targets, step.partner_targets, step.share)}
