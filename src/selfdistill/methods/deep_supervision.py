"""Deep supervision: a label loss at every exit, nothing distilled (Lee et al. 2015).

The control of every method with exits: what it gains over this is distillation's share.
"""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.method import Method

ABOUT = {
    "class": "DeepSupervision",
    "title": "Deep supervision",
    "name": "Deeply supervised network (DSN)",
    "paper": "1409.5185",
    "group": "controls",
    "needs": ["exits"],
    "cost": 1.18,
    "hyper": {
        "weight": {
            "default": 1.0,
            "allowed": [0.0, 100.0],
            "meaning": "weight of each shallow exit's cross-entropy; the deepest one's is 1",
            "source": "our choice: BYOT's loss with alpha = lambda = 0",
        },
    },
}


def deep_supervision_terms(logits: list[Tensor], targets: Tensor, *, weight: float) -> dict[str, Tensor]:
    """CE(z_C, y) + weight sum_{i < C} CE(z_i, y); logits: C tensors of N x K, shallow to deep."""
    *shallow, deepest = logits
    return {
        "deepest_cross_entropy": F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": weight * sum(F.cross_entropy(z, targets) for z in shallow),
    }


class DeepSupervision(Method):
    def terms(self, step):
        return deep_supervision_terms(step.student.logits, step.targets, weight=self.weight)
