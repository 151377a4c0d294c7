"""DR-KD, "Dynamic Rectification Knowledge Distillation" (Amik et al. 2022, arXiv 2201.11319)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from, softened_kl, virtual_teacher
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "DRKD",
    "needs": ["teacher"],
    "hyper": {
        "swap": {"default": "teacher", "choices": ["teacher", "student", "none"]},
        "alpha": {"default": 0.95, "allowed": [0.0, 1.0]},
        "temperature": {"default": 6.0, "allowed": [0.01, 1000.0]},
        "multiplier": {"default": 50.0, "allowed": [0.0, 10000.0]},
        "reduction": {"default": "mean", "choices": ["mean", "batchmean"]},
        "combined": {"default": False},
        "reg_alpha": {"default": 0.1, "allowed": [0.0, 1.0]},
        "reg_temperature": {"default": 20.0, "allowed": [0.01, 1000.0]},
    },
}


def rectify(logits: Tensor, targets: Tensor) -> Tensor:
    """Exchange each row's largest logit with the label's; all others stay (section 3 of the paper).

    A row whose label already is the largest does not change; of equal largest ones the first counts.
    logits: N x K; targets: N; returns a new N x K tensor, through which gradients flow to where each
    value came from: the public code writes into its argument, this does not.
    """
    label = targets.unsqueeze(1)
    top = logits.argmax(dim=1, keepdim=True)
    return logits.scatter(1, top, logits.gather(1, label)).scatter(1, label, logits.gather(1, top))


def drkd_terms(
    logits: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    multiplier: float,
    reduction: str,
    swap: str = "teacher",
) -> dict[str, Tensor]:
    """(1 - alpha) CE(z, y) + alpha T^2 m KL(softmax(v/T) || softmax(z/T)), v or z rectified first.

    logits, teacher: N x K, of the student and of its trained, frozen twin.  A rectified z enters the
    cross-entropy, too.
    """
    logits, teacher = exchanged(logits, teacher, targets, swap)
    kl = softened_kl(logits, teacher, temperature, reduction)
    return {
        "cross_entropy": (1 - alpha) * F.cross_entropy(logits, targets),
        "rectified_distillation": alpha * temperature**2 * multiplier * kl,
    }


def drkd_combined_terms(
    logits: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    multiplier: float,
    reduction: str,
    swap: str,
    reg_alpha: float,
    reg_temperature: float,
) -> dict[str, Tensor]:
    """(1 - reg_alpha) CE + 0.45 m KL(u || softmax(z)) + 0.45 T^2 m KL(softmax(v/T) || softmax(z/T)), with
    v or z rectified first and u Tf-KD's virtual teacher at reg_temperature; 0.45 stands in the code."""
    logits, teacher = exchanged(logits, teacher, targets, swap)
    virtual = virtual_teacher(logits, targets, 0.99, reg_temperature)
    kl = softened_kl(logits, teacher, temperature, reduction)
    return {
        "cross_entropy": (1 - reg_alpha) * F.cross_entropy(logits, targets),
        "rectified_distillation": 0.45 * temperature**2 * multiplier * kl,
        "virtual_teacher": 0.45 * multiplier * kl_from(virtual, logits, reduction),
    }


def exchanged(logits: Tensor, teacher: Tensor, targets: Tensor, swap: str) -> tuple[Tensor, Tensor]:
    student = rectify(logits, targets) if swap == "student" else logits
    return student, rectify(teacher, targets) if swap == "teacher" else teacher


class DRKD(Method):
    swap: str
    alpha: float
    temperature: float
    multiplier: float
    reduction: str
    combined: bool
    reg_alpha: float
    reg_temperature: float

    def terms(self, step: Step) -> dict[str, Tensor]:
        teacher = step.teacher.logits[-1]
        step.statistics["rectified_share"] = (teacher.argmax(dim=1) != step.targets).double().mean()
        keys = ["temperature", "multiplier", "reduction", "swap"]
        keys += ["reg_alpha", "reg_temperature"] if self.combined else ["alpha"]
        loss = drkd_combined_terms if self.combined else drkd_terms
        return loss(step.student.logits[-1], teacher, step.targets, **{key: getattr(self, key) for key in keys})
