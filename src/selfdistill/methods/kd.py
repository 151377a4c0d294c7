"""Knowledge distillation from a trained teacher (Hinton et al. 2015, arXiv 1503.02531)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "KD",
    "needs": ["teacher"],
    "hyper": {
        "alpha": {"default": 0.9, "allowed": [0.0, 1.0]},
        "temperature": {"default": 4.0, "allowed": [0.01, 1000.0]},
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
    alpha: float
    temperature: float

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits, teacher = step.student.logits[-1], step.teacher.logits[-1]
        return kd_terms(logits, teacher, step.targets, alpha=self.alpha, temperature=self.temperature)
