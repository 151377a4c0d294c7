"""DR-KD, "Dynamic Rectification Knowledge Distillation" (Amik et al. 2022, arXiv 2201.11319)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method

ABOUT = {
    "class": "DRKD",
    "title": "DR-KD",
    "name": "Dynamic Rectification Knowledge Distillation",
    "paper": "2201.11319",
    "group": "the four papers",
    "needs": ["teacher"],
    "hyper": {
        "alpha": {
            "default": 0.95,
            "allowed": [0.0, 1.0],
            "meaning": "weight of distillation; the cross-entropy weighs 1 - alpha",
            "source": "public code @6ccf070, ResNet18's JSON",
        },
        "temperature": {
            "default": 6.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "public code @6ccf070, ResNet18's JSON",
        },
        "multiplier": {
            "default": 50.0,
            "allowed": [0.0, 10000.0],
            "meaning": "m, factor on the KL term",
            "source": "public code @6ccf070, ResNet18's JSON",
        },
        "reduction": {
            "default": "mean",
            "choices": ["mean", "batchmean"],
            "meaning": "mean divides the KL by batch and classes, batchmean by the batch alone",
            "source": "public code @6ccf070: nn.KLDivLoss() without arguments, hence mean",
        },
    },
}


def rectify(logits: Tensor, targets: Tensor) -> Tensor:
    """Exchange each row's largest logit with the label's; all others stay (section 3 of the paper).

    A row whose label already is the largest stays as it is.  logits: N x K; targets: N; returns a
    new N x K tensor: the public code writes into its argument, this does not.
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
) -> dict[str, Tensor]:
    """(1 - alpha) CE(z, y) + alpha T^2 m KL(softmax(rectify(v)/T) || softmax(z/T)).

    logits, teacher: N x K, of the student and of its trained, frozen twin.
    """
    kl = softened_kl(logits, rectify(teacher, targets), temperature, reduction)
    return {
        "cross_entropy": (1 - alpha) * F.cross_entropy(logits, targets),
        "rectified_distillation": alpha * temperature**2 * multiplier * kl,
    }


class DRKD(Method):
    def terms(self, step):
        teacher = step.teacher.logits[-1]
        step.statistics["rectified_share"] = (teacher.argmax(dim=1) != step.targets).double().mean()
        return drkd_terms(
            step.student.logits[-1],
            teacher,
            step.targets,
            alpha=self.alpha,
            temperature=self.temperature,
            multiplier=self.multiplier,
            reduction=self.reduction,
        )
