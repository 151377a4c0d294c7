"""Plain training for as long as a method costs in all: what its price would have bought without it."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.method import Method, Phase, Step

ABOUT = {"class": "PlainEqualCost", "needs": [], "hyper": {"factor": {"default": 2.333, "allowed": [1.0, 100.0]}}}


class PlainEqualCost(Method):
    factor: float

    def phases(self, epochs: int) -> list[Phase]:
        return [Phase(max(round(self.factor * epochs), 1))]

    def terms(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.student.logits[-1], step.targets)}
