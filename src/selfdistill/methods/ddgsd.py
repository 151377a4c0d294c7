"""DDGSD, data-distortion guided self-distillation (Xu and Liu, AAAI 2019)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method

ABOUT = {
    "class": "DDGSD",
    "title": "DDGSD",
    "name": "Data-Distortion Guided Self-Distillation",
    "paper": None,
    "group": "teacher-free rivals",
    "needs": ["views"],
    "hyper": {
        "temperature": {
            "default": 3.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "our choice, as BYOT's; the paper was not read",
        },
        "weight": {
            "default": 1.0,
            "allowed": [0.0, 1000.0],
            "meaning": "weight of T^2 KL, each way",
            "source": "Self-KD-Lib methods/ddsgd.py @ede3062",
        },
        "feature_weight": {
            "default": 5e-4,
            "allowed": [0.0, 1000.0],
            "meaning": "weight of the squared distance of the views' mean features",
            "source": "Self-KD-Lib methods/ddsgd.py @ede3062",
        },
    },
}


def ddgsd_terms(
    logits: list[Tensor],
    apart: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    weight: float,
    feature_weight: float,
) -> dict[str, Tensor]:
    """mean of CE(z_a, y), CE(z_b, y) + T^2 (KL(b || a) + KL(a || b)) + mu |mean f_a - mean f_b|^2.

    logits: two of N x K, one a view, the target of a KL detached; apart: D, the difference of the mean
    features of the two views.
    """
    a, b = logits
    mutual = softened_kl(a, b, temperature) + softened_kl(b, a, temperature)
    return {
        "cross_entropy": (F.cross_entropy(a, targets) + F.cross_entropy(b, targets)) / 2,
        "mutual": weight * temperature**2 * mutual,
        "features": feature_weight * apart.square().sum(),
    }


class DDGSD(Method):
    def terms(self, step):
        one, other = (view.features[-1] for view in step.views)
        return ddgsd_terms(
            [view.logits[-1] for view in step.views],
            step.batch_mean(one - other),
            step.targets,
            temperature=self.temperature,
            weight=self.weight,
            feature_weight=self.feature_weight,
        )
