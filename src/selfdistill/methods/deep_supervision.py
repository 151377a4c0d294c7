"""Deep supervision: a label loss at every exit, nothing distilled (Lee et al. 2015).

The control of every method with exits: what such a method gains over this is due to distillation.
"""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.method import Method, Step

ABOUT = {"class": "DeepSupervision", "needs": ["exits"], "hyper": {"weight": {"default": 1.0, "allowed": [0.0, 100.0]}}}


def deep_supervision_terms(logits: list[Tensor], targets: Tensor, *, weight: float) -> dict[str, Tensor]:
    """CE(z_C, y) + weight sum_{i < C} CE(z_i, y); logits: C tensors of N x K, shallow to deep."""
    *shallow, deepest = logits
    return {
        "deepest_cross_entropy": F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": weight * sum(F.cross_entropy(z, targets) for z in shallow),
    }


class DeepSupervision(Method):
    weight: float

    def terms(self, step: Step) -> dict[str, Tensor]:
        return deep_supervision_terms(step.student.logits, step.targets, weight=self.weight)
