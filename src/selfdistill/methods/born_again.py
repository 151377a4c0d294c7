"""Born-again networks (Furlanello et al., ICML 2018, arXiv 1805.04770)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Phase, Step

ABOUT = {
    "class": "BornAgain",
    "needs": [],
    "hyper": {
        "generations": {"default": 3, "allowed": [2, 20]},
        "labels": {"default": True},
        "temperature": {"default": 1.0, "allowed": [0.01, 1000.0]},
    },
}


def born_again_terms(
    logits: Tensor, previous: Tensor, targets: Tensor, *, labels: bool, temperature: float
) -> dict[str, Tensor]:
    """[CE(z, y) +] T^2 KL(softmax(v/T) || softmax(z/T)); logits, previous: N x K, v of the generation before."""
    terms = {"cross_entropy": F.cross_entropy(logits, targets)} if labels else {}
    return terms | {"previous_generation": temperature**2 * softened_kl(logits, previous, temperature)}


class BornAgain(Method):
    generations: int
    labels: bool
    temperature: float

    def phases(self, epochs: int) -> list[Phase]:
        later = [Phase(epochs, restart=True, learns_from_previous=True, kept=True)] * (self.generations - 2)
        return [Phase(epochs, kept=True), *later, Phase(epochs, restart=True, learns_from_previous=True)]

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        if step.teacher is None:
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        previous = step.teacher.logits[-1]
        return born_again_terms(logits, previous, step.targets, labels=self.labels, temperature=self.temperature)
