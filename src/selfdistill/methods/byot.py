"""BYOT, "Be Your Own Teacher" (Zhang et al., ICCV 2019, arXiv 1905.08094): the conference paper's reading
and the journal code's."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs
from selfdistill.training.losses import soft_cross_entropy, softened_kl
from selfdistill.training.method import Method, sum_over_images

ABOUT = {
    "class": "BYOT",
    "title": "BYOT",
    "name": "Be Your Own Teacher",
    "paper": "1905.08094",
    "group": "the four papers",
    "needs": ["exits"],
    "cost": 1.18,
    "hyper": {
        "reading": {
            "default": "conference",
            "choices": ["conference", "journal"],
            "meaning": "the loss: the ICCV paper's, or that of the authors' public code (journal version)",
            "source": "the paper's tables are the conference's; the journal code reaches others by another recipe",
        },
        "alpha": {
            "default": 0.3,
            "allowed": [0.0, 1.0],
            "meaning": "weight of distillation at a shallow exit; its cross-entropy weighs 1 - alpha",
            "source": "the paper gives none; journal code train.py @47ca93b",
        },
        "hint": {
            "default": 0.03,
            "allowed": [0.0, 1000.0],
            "meaning": "lambda, weight of the feature distance to the deepest exit",
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
            "meaning": "multiply the distillation term by T^2",
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
    """The conference reading: equations 1 to 5 of the paper, summed over the shallow exits i < C.

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


def byot_journal_terms(
    logits: list[Tensor],
    adapted: list[Tensor],
    deepest_feature: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    hint: float,
    temperature: float,
    t_squared: bool,
    batch_sum: Callable[[Tensor], Tensor] = sum_over_images,
) -> dict[str, Tensor]:
    """The journal code's reading (ArchipLab, train.py @47ca93b), summed over the shallow exits i < C.

        CE(q_C, y) + sum_i (1 - alpha) CE(q_i, y) + alpha SCE(q_i, q_C) + lambda sum_{i < C - 1} |A_i - F_C|

    SCE is the soft cross-entropy at T.  adapted: the features N x D of the exits behind their linear
    adaptation layers, shallow to deep, of which those of i < C - 1 count: the code leaves the deepest
    shallow exit out, though its comment speaks of the shallowest.  deepest_feature: N x D.  |.| is the l2
    norm of the whole batch's difference, neither squared nor averaged: it grows with the root of N.
    """
    *shallow, deepest = logits
    soft = (deepest.detach() / temperature).softmax(dim=1)
    scale = temperature**2 if t_squared else 1.0
    squares = [batch_sum((a - deepest_feature.detach()).square().sum(dim=1)) for a in adapted[: len(shallow) - 1]]
    return {
        "deepest_cross_entropy": F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": (1 - alpha) * sum(F.cross_entropy(z, targets) for z in shallow),
        "distillation": alpha * scale * sum(soft_cross_entropy(z / temperature, soft) for z in shallow),
        # the root's slope is infinite at 0; there the norm's gradient is 0, as torch.dist has it
        "hint": hint * sum((s.clamp(min=1e-30).sqrt() for s in squares), deepest.new_zeros(())),
    }


class Adaptation(nn.Module):
    """The journal code's linear layers on the features that exits are compared by: one an exit i < C - 1 (the
    code has a further one, which it never uses)."""

    def __init__(self, student: Outputs) -> None:
        super().__init__()
        width = student.features[-1].shape[1]
        self.layers = nn.ModuleList(nn.Linear(f.shape[1], width) for f in student.features[:-2])

    def forward(self, images: Tensor, student: Outputs) -> Outputs:
        return Outputs([], [layer(f) for layer, f in zip(self.layers, student.features, strict=False)], [])


class BYOT(Method):
    @property
    def needs(self):
        return super().needs | ({"companion"} if self.reading == "journal" else set())

    def companion(self, student, teacher, fresh):
        return Adaptation(student)

    def terms(self, step):
        weights = {name: getattr(self, name) for name in ("alpha", "hint", "temperature", "t_squared")}
        logits, features = step.student.logits, step.student.features
        if self.reading == "conference":
            return byot_terms(logits, features, step.targets, **weights)
        adapted = step.companion.features
        return byot_journal_terms(logits, adapted, features[-1], step.targets, **weights, batch_sum=step.batch_sum)
