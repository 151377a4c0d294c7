"""CS-KD, class-wise self-knowledge distillation (Yun et al., CVPR 2020, arXiv 2003.13964)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "CSKD",
    "needs": ["pairs"],
    "hyper": {
        "temperature": {"default": 4.0, "allowed": [0.01, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
    },
}


def cskd_terms(
    logits: Tensor, pair: Tensor, targets: Tensor, *, temperature: float, weight: float
) -> dict[str, Tensor]:
    """CE(z, y) + lambda T^2 KL(softmax(z'/T) || softmax(z/T)); equation 3 of the paper.

    logits: N x K; pair: N x K, of another image of each label, detached.
    """
    return {
        "cross_entropy": F.cross_entropy(logits, targets),
        "class_wise": weight * temperature**2 * softened_kl(logits, pair, temperature),
    }


class CSKD(Method):
    temperature: float
    weight: float

    def terms(self, step: Step) -> dict[str, Tensor]:
        return cskd_terms(
            step.student.logits[-1],
            step.pair.logits[-1],
            step.targets,
            temperature=self.temperature,
            weight=self.weight,
        )
