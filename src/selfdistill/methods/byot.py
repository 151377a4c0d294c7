"""BYOT, "Be Your Own Teacher" (Zhang et al., ICCV 2019, arXiv 1905.08094), conference reading."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method

ABOUT = {
    "class": "BYOT",
    "title": "BYOT",
    "name": "Be Your Own Teacher",
    "paper": "1905.08094",
    "group": "the four papers",
    "needs": ["exits"],
    "hyper": {
        "alpha": {
            "default": 0.3,
            "allowed": [0.0, 1.0],
            "meaning": "weight of distillation at a shallow exit; its cross-entropy weighs 1 - alpha",
            "source": "the paper gives none; journal code train.py @47ca93b",
        },
        "hint": {
            "default": 0.03,
            "allowed": [0.0, 1000.0],
            "meaning": "lambda, weight of the squared feature distance to the deepest exit",
            "source": "the paper gives none; journal code train.py @47ca93b",
        },
        "temperature": {
            "default": 3.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "the paper gives none; journal code train.py @47ca93b",
        },
        "t_squared": {
            "default": False,
            "meaning": "multiply the KL term by T^2",
            "source": "none in the paper's formula and the journal code; three re-implementations have it",
        },
    },
}


def byot_terms(
    logits: list[Tensor],
    features: list[Tensor],
    targets: Tensor,
    *,
    alpha: float,
    hint: float,
    temperature: float,
    t_squared: bool,
) -> dict[str, Tensor]:
    """Equations 1 to 5 of the paper, summed over the shallow exits i < C.

        CE(q_C, y) + sum_i (1 - alpha) CE(q_i, y) + alpha KL(q_C || q_i) + lambda |F_i - F_C|^2

    logits: C tensors of N x K, shallow to deep; features: C tensors of N x D, before the classifier.
    The squared distance is summed over D and averaged over N.  The deepest exit learns from the
    labels alone: its logits and features are detached where they teach, as in every public code.
    """
    *shallow, deepest = logits
    *shallow_features, deepest_feature = features
    teacher_feature = deepest_feature.detach()
    scale = temperature**2 if t_squared else 1.0
    return {
        "deepest_cross_entropy": F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": (1 - alpha) * sum(F.cross_entropy(z, targets) for z in shallow),
        "distillation": alpha * scale * sum(softened_kl(z, deepest, temperature) for z in shallow),
        "hint": hint * sum((f - teacher_feature).square().sum(dim=1).mean() for f in shallow_features),
    }


class BYOT(Method):
    def terms(self, step):
        return byot_terms(
            step.student.logits,
            step.student.features,
            step.targets,
            alpha=self.alpha,
            hint=self.hint,
            temperature=self.temperature,
            t_squared=self.t_squared,
        )
