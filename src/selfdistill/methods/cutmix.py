"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899)."""

from torch import Tensor

from selfdistill.training.augment import cutmix
from selfdistill.training.losses import mixed_cross_entropy
from selfdistill.training.method import Method

ABOUT = {
    "class": "CutMix",
    "title": "CutMix",
    "name": "CutMix",
    "paper": "1905.04899",
    "group": "controls",
    "needs": ["partners"],
    "cost": 1.0,
    "hyper": {
        "alpha": {
            "default": 1.0,
            "allowed": [0.001, 100.0],
            "meaning": "of the Beta(alpha, alpha) distribution of shares, drawn once a batch",
            "source": "the paper, section 4.1 (CIFAR)",
        },
    },
}


class CutMix(Method):
    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        return cutmix(images, partners, share, box)

    def terms(self, step):
        logits = step.student.logits[-1]
        return {"cross_entropy": mixed_cross_entropy(logits, step.targets, step.partner_targets, step.share)}
