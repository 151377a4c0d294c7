"""Snapshot distillation (Yang et al., CVPR 2019, arXiv 1812.00123)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from
from selfdistill.training.method import Method, Phase, Step

ABOUT = {
    "class": "SnapshotDistillation",
    "needs": [],
    "hyper": {
        "cycles": {"default": 2, "allowed": [2, 100]},
        "temperature": {"default": 2.0, "allowed": [0.01, 1000.0]},
        "label_weight": {"default": 1.5, "allowed": [0.0, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
    },
}


def snapshot_terms(
    logits: Tensor, snapshot: Tensor, targets: Tensor, *, temperature: float, label_weight: float, weight: float
) -> dict[str, Tensor]:
    """label_weight CE(z, y) + weight KL(softmax(v/T) || softmax(z)); logits, snapshot: N x K, v of the network
    as the cycle before left it."""
    return {
        "cross_entropy": label_weight * F.cross_entropy(logits, targets),
        "snapshot": weight * kl_from((snapshot / temperature).softmax(dim=1), logits),
    }


class SnapshotDistillation(Method):
    cycles: int
    temperature: float
    label_weight: float
    weight: float

    def phases(self, epochs: int) -> list[Phase]:
        cycles = min(self.cycles, epochs)
        lengths = [epochs * (i + 1) // cycles - epochs * i // cycles for i in range(cycles)]
        return [Phase(length, learns_from_previous=i > 0) for i, length in enumerate(lengths)]

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        if step.teacher is None:
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        weights = {name: getattr(self, name) for name in ("temperature", "label_weight", "weight")}
        return snapshot_terms(logits, step.teacher.logits[-1], step.targets, **weights)
