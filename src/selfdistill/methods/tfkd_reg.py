"""Tf-KD_reg, a virtual teacher as a regulariser (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from, virtual_teacher
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "TfKDReg",
    "needs": [],
    "hyper": {
        "alpha": {"default": 0.1, "allowed": [0.0, 1.0]},
        "temperature": {"default": 20.0, "allowed": [0.01, 1000.0]},
        "multiplier": {"default": 100.0, "allowed": [0.0, 10000.0]},
        "correct": {"default": 0.99, "allowed": [0.01, 1.0]},
        "soften_student": {"default": False},
        "reduction": {"default": "mean", "choices": ["mean", "batchmean"]},
    },
}


def tfkd_reg_terms(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    multiplier: float,
    correct: float,
    soften_student: bool,
    reduction: str,
) -> dict[str, Tensor]:
    """(1 - alpha) CE(z, y) + alpha m KL(softmax(u/T) || softmax(z)); logits: N x K.

    u is `correct` on the label and (1 - correct)/(K - 1) elsewhere; the softmax is taken of these
    probabilities, as in the public code.  There is no factor T^2.
    """
    virtual = virtual_teacher(logits, targets, correct, temperature)
    kl = kl_from(virtual, logits / temperature if soften_student else logits, reduction)
    return {
        "cross_entropy": (1 - alpha) * F.cross_entropy(logits, targets),
        "virtual_teacher": alpha * multiplier * kl,
    }


class TfKDReg(Method):
    alpha: float
    temperature: float
    multiplier: float
    correct: float
    soften_student: bool
    reduction: str

    def terms(self, step: Step) -> dict[str, Tensor]:
        hyper = {name: getattr(self, name) for name in ABOUT["hyper"]}
        return tfkd_reg_terms(step.student.logits[-1], step.targets, **hyper)
