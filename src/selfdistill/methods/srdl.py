"""SRDL, "Self-Referenced Deep Learning" (Lan et al., ACCV 2018, arXiv 1811.07598)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase

ABOUT = {
    "class": "SRDL",
    "title": "SRDL",
    "name": "Self-Referenced Deep Learning",
    "paper": "1811.07598",
    "group": "the four papers",
    "needs": [],
    "cost": 1.17,
    "hyper": {
        "temperature": {
            "default": 3.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "the same authors' ONE, loss/kl_loss.py @54afde3; SRDL's own value is not known",
        },
        "weight": {
            "default": 1.0,
            "allowed": [0.0, 1000.0],
            "meaning": "weight of T^2 KL(reference || network) beside the cross-entropy of stage II",
            "source": "equal weights, recalled, unverified",
        },
        "split": {
            "default": 0.5,
            "allowed": [0.01, 0.99],
            "meaning": "share of the epochs that stage I takes",
            "source": "two stages of equal length, recalled, unverified",
        },
        "restart": {
            "default": True,
            "meaning": "stage II begins from freshly random weights",
            "source": "the paper's key ablation, recalled, unverified",
        },
        "reference_mode": {
            "default": "eval",
            "choices": ["eval", "train"],
            "meaning": "whether the reference normalises by its running statistics or by each batch's",
            "source": "our choice; the paper's is not known",
        },
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
    def phases(self, epochs):
        if epochs == 1:
            return [Phase(1)]
        first = min(max(round(self.split * epochs), 1), epochs - 1)
        in_training_mode = self.reference_mode == "train"
        second = Phase(epochs - first, self.restart, True, teacher_in_training_mode=in_training_mode)
        return [Phase(first), second]

    def terms(self, step):
        logits = step.student.logits[-1]
        if step.teacher is None:
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        reference = step.teacher.logits[-1]
        return referenced_terms(logits, reference, step.targets, temperature=self.temperature, weight=self.weight)
