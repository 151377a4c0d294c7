"""SRDL, "Self-Referenced Deep Learning" (Lan et al., ACCV 2018, arXiv 1811.07598)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase, Step

ABOUT = {
    "class": "SRDL",
    "needs": [],
    "hyper": {
        "temperature": {"default": 3.0, "allowed": [0.01, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
        "split": {"default": 0.5, "allowed": [0.01, 0.99]},
        "restart": {"default": True},
        "reference_mode": {"default": "eval", "choices": ["eval", "train"]},
    },
}


def referenced_terms(
    logits: Tensor, reference: Tensor, targets: Tensor, *, temperature: float, weight: float
) -> dict[str, Tensor]:
    """Stage II: CE(z, y) + weight T^2 KL(softmax(reference/T) || softmax(z/T)).

    logits, reference: N x K, of the network and of the frozen network that stage I ended with, on the
    same augmented images.
    """
    distillation = weight * temperature**2 * softened_kl(logits, reference, temperature)
    return {"cross_entropy": F.cross_entropy(logits, targets), "self_reference": distillation}


class SRDL(Method):
    temperature: float
    weight: float
    split: float
    restart: bool
    reference_mode: str

    def phases(self, epochs: int) -> list[Phase]:
        if epochs == 1:
            return [Phase(1)]
        first = min(max(round(self.split * epochs), 1), epochs - 1)
        in_training_mode = self.reference_mode == "train"
        second = Phase(epochs - first, self.restart, True, teacher_in_training_mode=in_training_mode)
        return [Phase(first), second]

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        if step.teacher is None:
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        reference = step.teacher.logits[-1]
        return referenced_terms(logits, reference, step.targets, temperature=self.temperature, weight=self.weight)
