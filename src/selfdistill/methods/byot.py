"""BYOT, "Be Your Own Teacher" (Zhang et al., ICCV 2019, arXiv 1905.08094): the conference paper's formula, and
three public codes' losses with their own weights."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs
from selfdistill.training.losses import soft_cross_entropy, softened_kl
from selfdistill.training.method import Method, Step, sum_over_images

ABOUT = {
    "class": "BYOT",
    "needs": ["exits", "companion"],
    "hyper": {
        "reading": {"default": "luanyunteng", "choices": ["luanyunteng", "journal", "mmrazor", "conference"]},
        "alpha": {"default": None, "allowed": [0.0, 1.0]},
        "hint": {"default": None, "allowed": [0.0, 1000.0]},
        "temperature": {"default": None, "allowed": [0.01, 1000.0]},
        "t_squared": {"default": None},
    },
}

# loss and weights belong together: each reading's hint is a distance of its own, and so is its weight's scale
READINGS = {
    "luanyunteng": {"alpha": 0.1, "hint": 1e-6, "temperature": 3.0, "t_squared": True},
    "journal": {"alpha": 0.3, "hint": 0.03, "temperature": 3.0, "t_squared": False},
    "mmrazor": {"alpha": 0.3, "hint": 0.03, "temperature": 3.0, "t_squared": True},
    "conference": {"alpha": 0.3, "hint": 1.28e-4, "temperature": 3.0, "t_squared": False},
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
    """The conference paper: equations 1 to 5 of the paper, summed over the shallow exits i < C.

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
    adaptation layers, shallow to deep; only those of i < C - 1 count: the code leaves out the deepest
    shallow exit, though its comment speaks of the shallowest.  deepest_feature: N x D.  |.| is the l2
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
        "hint": hint * norms(squares, deepest),
    }


def byot_luanyunteng_terms(
    logits: list[Tensor],
    features: list[Tensor],
    targets: Tensor,
    *,
    alpha: float,
    hint: float,
    temperature: float,
    t_squared: bool,
    batch_size: int,
) -> dict[str, Tensor]:
    """The re-implementation of the conference paper (luanyunteng, train.py @8045079); the sums are over i < C.

        (1 - alpha) CE(q_C, y) + sum_i (1 - alpha) CE(q_i, y) + alpha T^2 SCE(q_i, q_C) + beta sum_i h_i

    h_i: the sum over the batch's images and the D entries of (F_i - F_C)^2 where F_i or F_C is positive.  logits: C
    tensors of N x K, features: C of N x D; batch_size: of the whole batch, over all processes: the mean over
    images times it is the sum.  The code scales the deepest exit's cross-entropy, too.
    """
    *shallow, deepest = logits
    *shallow_features, deepest_feature = features
    taught = deepest_feature.detach()
    soft = (deepest.detach() / temperature).softmax(dim=1)
    scale = temperature**2 if t_squared else 1.0
    squares = [((f - taught).square() * ((f > 0) | (taught > 0))).sum(dim=1).mean() for f in shallow_features]
    return {
        "deepest_cross_entropy": (1 - alpha) * F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": (1 - alpha) * sum(F.cross_entropy(z, targets) for z in shallow),
        "distillation": alpha * scale * sum(soft_cross_entropy(z / temperature, soft) for z in shallow),
        "hint": hint * batch_size * sum(squares),
    }


def byot_mmrazor_terms(
    logits: list[Tensor],
    features: list[Tensor],
    targets: Tensor,
    *,
    alpha: float,
    hint: float,
    temperature: float,
    t_squared: bool,
    batch_sum: Callable[[Tensor], Tensor] = sum_over_images,
) -> dict[str, Tensor]:
    """mmrazor's configuration (byot_resnet18_8xb16_cifar100 @90c7af1), summed over the shallow exits i < C.

        CE(q_C, y) + sum_i (1 - alpha) CE(q_i, y) + alpha T^2 KL(q_C || q_i) + lambda sum_{i < C - 1} |F_i - F_C|

    |.| is the l2 norm of the whole batch's difference, neither squared nor averaged, of features as they are; the
    deepest shallow exit's has the weight 0 there.
    """
    *shallow, deepest = logits
    taught = features[-1].detach()
    scale = temperature**2 if t_squared else 1.0
    squares = [batch_sum((f - taught).square().sum(dim=1)) for f in features[: len(shallow) - 1]]
    return {
        "deepest_cross_entropy": F.cross_entropy(deepest, targets),
        "shallow_cross_entropy": (1 - alpha) * sum(F.cross_entropy(z, targets) for z in shallow),
        "distillation": alpha * scale * sum(softened_kl(z, deepest, temperature) for z in shallow),
        "hint": hint * norms(squares, deepest),
    }


def norms(squares: list[Tensor], like: Tensor) -> Tensor:
    """The sum of the roots.  The root's slope is infinite at 0; there the gradient is 0, as torch.dist has it."""
    return sum((s.clamp(min=1e-30).sqrt() for s in squares), like.new_zeros(()))


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
    reading: str
    alpha: float
    hint: float
    temperature: float
    t_squared: bool

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        for name, value in READINGS[self.reading].items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs - (set() if self.reading == "journal" else {"companion"})

    def companion(self, student: Outputs, teacher: Outputs | None, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        return Adaptation(student)

    def terms(self, step: Step) -> dict[str, Tensor]:
        weights = {name: getattr(self, name) for name in READINGS[self.reading]}
        logits, features = step.student.logits, step.student.features
        if self.reading == "conference":
            return byot_terms(logits, features, step.targets, **weights)
        if self.reading == "luanyunteng":
            return byot_luanyunteng_terms(logits, features, step.targets, **weights, batch_size=step.batch_size)
        if self.reading == "mmrazor":
            return byot_mmrazor_terms(logits, features, step.targets, **weights, batch_sum=step.batch_sum)
        assert step.companion is not None
        adapted = step.companion.features
        return byot_journal_terms(logits, adapted, features[-1], step.targets, **weights, batch_sum=step.batch_sum)
