"""Tf-KD_reg, a virtual teacher as a regulariser (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from, virtual_teacher
from selfdistill.training.method import Method

ABOUT = {
    "class": "TfKDReg",
    "title": "Tf-KD reg",
    "name": "Teacher-free knowledge distillation by manually designed regularisation",
    "paper": "1909.11723",
    "group": "teacher-free rivals",
    "needs": [],
    "cost": 1.0,
    "hyper": {
        "alpha": {
            "default": 0.1,
            "allowed": [0.0, 1.0],
            "meaning": "weight of the virtual teacher; the cross-entropy weighs 1 - alpha",
            "source": "public code @d000ab3, ResNet18's JSON",
        },
        "temperature": {
            "default": 20.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the virtual teacher",
            "source": "public code @d000ab3, ResNet18's JSON",
        },
        "multiplier": {
            "default": 100.0,
            "allowed": [0.0, 10000.0],
            "meaning": "m, factor on the KL term",
            "source": "public code @d000ab3, ResNet18's JSON",
        },
        "correct": {
            "default": 0.99,
            "allowed": [0.01, 1.0],
            "meaning": "the virtual teacher's probability of the label, before it is softened",
            "source": "public code @d000ab3, my_loss_function.py",
        },
        "soften_student": {
            "default": False,
            "meaning": "divide the student's logits by T, too",
            "source": "the paper's equation does; the code for CIFAR-100 does not, which its author found better",
        },
        "reduction": {
            "default": "mean",
            "choices": ["mean", "batchmean"],
            "meaning": "mean divides the KL by batch and classes, batchmean by the batch alone",
            "source": "public code @d000ab3: nn.KLDivLoss() without arguments, hence mean",
        },
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
    def terms(self, step):
        hyper = {name: getattr(self, name) for name in ABOUT["hyper"]}
        return tfkd_reg_terms(step.student.logits[-1], step.targets, **hyper)
