"""Attention transfer from a trained teacher (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import attention_distance
from selfdistill.training.method import Method, Step, StepError

ABOUT = {
    "class": "AttentionTransfer",
    "needs": ["teacher"],
    "hyper": {
        "weight": {"default": 1000.0, "allowed": [0.0, 1000000.0]},
        "distance": {"default": "mean_square", "choices": ["mean_square", "l2"]},
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
    weight: float
    distance: str

    def terms(self, step: Step) -> dict[str, Tensor]:
        mine, theirs = step.student.maps, step.teacher.maps
        if len(mine) != len(theirs):
            raise StepError(f"AT: the teacher has {len(theirs)} sections; allowed: {len(mine)}, as many as the student")
        logits = step.student.logits[-1]
        return attention_terms(logits, mine, theirs, step.targets, weight=self.weight, distance=self.distance)
