"""CS-KD, class-wise self-knowledge distillation (Yun et al., CVPR 2020, arXiv 2003.13964)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method

ABOUT = {
    "class": "CSKD",
    "title": "CS-KD",
    "name": "Class-wise Self-Knowledge Distillation",
    "paper": "2003.13964",
    "group": "teacher-free rivals",
    "needs": ["pairs"],
    "cost": 1.33,
    "hyper": {
        "temperature": {
            "default": 4.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "public code @b447f25",
        },
        "weight": {
            "default": 1.0,
            "allowed": [0.0, 1000.0],
            "meaning": "lambda, weight of T^2 KL to the prediction on the other image of the class",
            "source": "public code @b447f25",
        },
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
    def terms(self, step):
        return cskd_terms(
            step.student.logits[-1],
            step.pair.logits[-1],
            step.targets,
            temperature=self.temperature,
            weight=self.weight,
        )
