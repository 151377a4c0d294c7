"""Knowledge distillation from a trained teacher (Hinton et al. 2015, arXiv 1503.02531)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method

ABOUT = {
    "class": "KD",
    "title": "KD",
    "name": "Knowledge Distillation",
    "paper": "1503.02531",
    "group": "with a teacher",
    "needs": ["teacher"],
    "cost": 2.33,
    "hyper": {
        "alpha": {
            "default": 0.9,
            "allowed": [0.0, 1.0],
            "meaning": "weight of distillation; the cross-entropy weighs 1 - alpha",
            "source": "RepDistiller scripts/run_cifar_distill.sh @b84f547",
        },
        "temperature": {
            "default": 4.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "RepDistiller @b84f547, kd_T, recalled",
        },
    },
}


def kd_terms(
    logits: Tensor, teacher: Tensor, targets: Tensor, *, alpha: float, temperature: float
) -> dict[str, Tensor]:
    """(1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v/T) || softmax(z/T)); logits, teacher: N x K."""
    return {
        "cross_entropy": (1 - alpha) * F.cross_entropy(logits, targets),
        "distillation": alpha * temperature**2 * softened_kl(logits, teacher, temperature),
    }


class KD(Method):
    def terms(self, step):
        logits, teacher = step.student.logits[-1], step.teacher.logits[-1]
        return kd_terms(logits, teacher, step.targets, alpha=self.alpha, temperature=self.temperature)
