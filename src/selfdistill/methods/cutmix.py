"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899)."""

from torch import Tensor

from selfdistill.training.augment import cutmix
from selfdistill.training.losses import mixed_cross_entropy
from selfdistill.training.method import Method, Step

ABOUT = {"class": "CutMix", "needs": ["partners"], "hyper": {"alpha": {"default": 1.0, "allowed": [0.001, 100.0]}}}


class CutMix(Method):
    alpha: float

    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        return cutmix(images, partners, share, box)

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        return {"cross_entropy": mixed_cross_entropy(logits, step.targets, step.partner_targets, step.share)}
