"""DDGSD, data-distortion guided self-distillation (Xu and Liu, AAAI 2019)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "DDGSD",
    "needs": ["views"],
    "hyper": {
        "temperature": {"default": 3.0, "allowed": [0.01, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
        "feature_weight": {"default": 0.0005, "allowed": [0.0, 1000.0]},
        "as_self_kd_lib": {"default": False},
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
    as_self_kd_lib: bool = False,
) -> dict[str, Tensor]:
    """mean of CE(z_a, y), CE(z_b, y) + T^2 (KL(b || a) + KL(a || b)) + mu |mean f_a - mean f_b|^2.

    logits: two of N x K, one a view, the target of a KL detached; apart: D, the difference of the mean
    features of the two views.  as_self_kd_lib: as that code computes it, half the cross-entropy, and the
    square of `apart`'s mean in place of its squared norm.
    """
    a, b = logits
    mutual = softened_kl(a, b, temperature) + softened_kl(b, a, temperature)
    cross_entropy = (F.cross_entropy(a, targets) + F.cross_entropy(b, targets)) / 2
    features = apart.mean().square() if as_self_kd_lib else apart.square().sum()
    return {
        "cross_entropy": cross_entropy / 2 if as_self_kd_lib else cross_entropy,
        "mutual": weight * temperature**2 * mutual,
        "features": feature_weight * features,
    }


class DDGSD(Method):
    temperature: float
    weight: float
    feature_weight: float
    as_self_kd_lib: bool

    def terms(self, step: Step) -> dict[str, Tensor]:
        one, other = (view.features[-1] for view in step.views)
        logits = [view.logits[-1] for view in step.views]
        hyper = {name: getattr(self, name) for name in ABOUT["hyper"]}
        return ddgsd_terms(logits, step.batch_mean(one - other), step.targets, **hyper)
