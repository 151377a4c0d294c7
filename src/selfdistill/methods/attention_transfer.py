"""Attention transfer from a trained teacher (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import attention_distance
from selfdistill.training.method import Method, StepError

ABOUT = {
    "class": "AttentionTransfer",
    "title": "AT",
    "name": "Attention Transfer",
    "paper": "1612.03928",
    "group": "with a teacher",
    "needs": ["teacher"],
    "cost": 2.33,
    "hyper": {
        "weight": {
            "default": 1000.0,
            "allowed": [0.0, 1000000.0],
            "meaning": "beta, weight of the attention maps' distances, summed over the sections",
            "source": "RepDistiller scripts/run_cifar_distill.sh @b84f547",
        },
        "distance": {
            "default": "mean_square",
            "choices": ["mean_square", "l2"],
            "meaning": "mean squared difference of the maps, or the l2 norm of their difference",
            "source": "mean_square: RepDistiller distiller_zoo/AT.py @b84f547; l2: the paper's equation 2, recalled",
        },
    },
}


def attention_terms(
    logits: Tensor, maps: list[Tensor], teacher_maps: list[Tensor], targets: Tensor, *, weight: float, distance: str
) -> dict[str, Tensor]:
    """CE(z, y) + beta sum_l d(Q_l, Q'_l) over the sections; equation 2 of the paper.

    Q_l is the mean over channels of F_l^2, flattened and of l2 norm 1; maps, teacher_maps: N x C x H x W.
    """
    apart = sum(attention_distance(s, t, distance) for s, t in zip(maps, teacher_maps, strict=True))
    return {"cross_entropy": F.cross_entropy(logits, targets), "attention": weight * apart}


class AttentionTransfer(Method):
    def terms(self, step):
        mine, theirs = step.student.maps, step.teacher.maps
        if len(mine) != len(theirs):
            raise StepError(f"AT: the teacher has {len(theirs)} sections; allowed: {len(mine)}, as many as the student")
        logits = step.student.logits[-1]
        return attention_terms(logits, mine, theirs, step.targets, weight=self.weight, distance=self.distance)
