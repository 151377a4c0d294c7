"""FRSKD, feature refinement via self-knowledge distillation (Ji et al., CVPR 2021, arXiv 2103.08273)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.bifpn import BiFPN
from selfdistill.models.sections import Outputs
from selfdistill.training.losses import attention_distance, softened_kl
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "FRSKD",
    "needs": ["companion"],
    "hyper": {
        "alpha": {"default": 2.0, "allowed": [0.0, 1000.0]},
        "beta": {"default": 100.0, "allowed": [0.0, 100000.0]},
        "temperature": {"default": 4.0, "allowed": [0.01, 1000.0]},
        "width": {"default": 2, "allowed": [1, 16]},
    },
}


def frskd_terms(
    logits: Tensor,
    maps: list[Tensor],
    refined_logits: Tensor,
    refined_maps: list[Tensor],
    targets: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> dict[str, Tensor]:
    """CE(z, y) + CE(v, y) + alpha T^2 KL(softmax(v/T) || softmax(z/T)) + beta sum_l AT(F_l, R_l).

    logits, refined_logits: N x K, of the network and of its self-teacher, a bidirectional feature pyramid
    on its maps; maps, refined_maps: N x C x H x W, one a section; AT is the attention maps' mean squared
    difference.  The self-teacher learns from the labels alone.
    """
    apart = sum(attention_distance(f, r) for f, r in zip(maps, refined_maps, strict=True))
    return {
        "cross_entropy": F.cross_entropy(logits, targets),
        "self_teacher_cross_entropy": F.cross_entropy(refined_logits, targets),
        "distillation": alpha * temperature**2 * softened_kl(logits, refined_logits, temperature),
        "attention": beta * apart,
    }


class FRSKD(Method):
    alpha: float
    beta: float
    temperature: float
    width: int

    def companion(self, student: Outputs, teacher: Outputs | None, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        channels = [m.shape[1] for m in student.maps]
        return BiFPN(channels, classes=student.logits[-1].shape[1], width=self.width)

    def terms(self, step: Step) -> dict[str, Tensor]:
        refined = step.companion
        return frskd_terms(
            step.student.logits[-1],
            step.student.maps,
            refined.logits[-1],
            refined.maps,
            step.targets,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )
