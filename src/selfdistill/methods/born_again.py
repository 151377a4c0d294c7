"""Born-again networks (Furlanello et al., ICML 2018, arXiv 1805.04770)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase

ABOUT = {
    "class": "BornAgain",
    "title": "Born-again",
    "name": "Born-Again Networks (BAN)",
    "paper": "1805.04770",
    "group": "teacher-free rivals",
    "needs": [],
    "cost": 3.67,
    "hyper": {
        "generations": {
            "default": 3,
            "allowed": [2, 20],
            "meaning": "networks in all, the first, which learns from labels alone, included; each trains all epochs",
            "source": "our choice; the paper's per-network numbers of generations were not obtained",
        },
        "labels": {
            "default": True,
            "meaning": "later generations learn from the labels, too (the paper's BAN+L)",
            "source": "recalled, unverified: the paper reports both",
        },
        "temperature": {
            "default": 1.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of both distributions; the KL term is multiplied by T^2",
            "source": "recalled, unverified: the paper does not soften; KD_Lib's BANN.py @0b8525b takes 20",
        },
    },
}


def born_again_terms(
    logits: Tensor, previous: Tensor, targets: Tensor, *, labels: bool, temperature: float
) -> dict[str, Tensor]:
    """[CE(z, y) +] T^2 KL(softmax(v/T) || softmax(z/T)); logits, previous: N x K, v of the generation before."""
    terms = {"cross_entropy": F.cross_entropy(logits, targets)} if labels else {}
    return terms | {"previous_generation": temperature**2 * softened_kl(logits, previous, temperature)}


class BornAgain(Method):
    def phases(self, epochs):
        later = [Phase(epochs, restart=True, learns_from_previous=True, kept=True)] * (self.generations - 2)
        return [Phase(epochs, kept=True), *later, Phase(epochs, restart=True, learns_from_previous=True)]

    def terms(self, step):
        logits = step.student.logits[-1]
        if step.teacher is None:
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        previous = step.teacher.logits[-1]
        return born_again_terms(logits, previous, step.targets, labels=self.labels, temperature=self.temperature)
