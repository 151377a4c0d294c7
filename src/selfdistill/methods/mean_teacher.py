"""Mean Teacher, the running average of the weights as the teacher (Tarvainen and Valpola, NeurIPS 2017,
arXiv 1703.01780), on labelled images alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase, Step

ABOUT = {
    "class": "MeanTeacher",
    "needs": ["average"],
    "hyper": {
        "decay": {"default": 0.97, "allowed": [0.0, 1.0]},
        "consistency": {"default": "mse", "choices": ["mse", "kl"]},
        "weight": {"default": 100.0, "allowed": [0.0, 10000.0]},
        "rampup_epochs": {"default": 5, "allowed": [0, 1000]},
    },
}


def consistency(logits: Tensor, average: Tensor, kind: str) -> Tensor:
    """ "mse": mean over images and classes of (softmax(z) - softmax(v))^2; "kl": KL(softmax(v) || softmax(z)).

    logits, average: N x K, of the student and of the averaged network, which is detached.
    """
    if kind == "kl":
        return softened_kl(logits, average, 1.0)
    return (logits.softmax(dim=1) - average.detach().softmax(dim=1)).square().mean()


def ramp(epochs_over: Tensor, length: int) -> Tensor:
    """exp(-5 (1 - t)^2), t the share of `length` epochs that is over, at most 1."""
    share = (epochs_over / length).clamp(max=1) if length else torch.ones_like(epochs_over)
    return torch.exp(-5 * (1 - share) ** 2)


class MeanTeacher(Method):
    decay: float
    consistency: str
    weight: float
    rampup_epochs: int

    def phases(self, epochs: int) -> list[Phase]:
        self.epochs = epochs
        return super().phases(epochs)

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        weight = self.weight * ramp(step.progress * self.epochs, self.rampup_epochs)
        return {
            "cross_entropy": F.cross_entropy(logits, step.targets),
            "consistency": weight * consistency(logits, step.teacher.logits[-1], self.consistency),
        }
