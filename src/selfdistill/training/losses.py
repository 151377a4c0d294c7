"""Losses that several methods share.  Logits are N x K floats, targets int64 of N."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reduced(total: Tensor, logits: Tensor, reduction: str) -> Tensor:
    """A sum over images and classes, divided by the batch ("batchmean") or by batch and classes ("mean")."""
    return total / {"batchmean": logits.shape[0], "mean": logits.numel()}[reduction]


def softened_kl_of_images(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher/T) || softmax(student/T)) of each image, N; the teacher's gradient is cut."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, reduction: str = "batchmean") -> Tensor:
    """KL(softmax(teacher/T) || softmax(student/T)); Hinton et al. 2015 without the factor T^2.

    The teacher's gradient is cut.  `reduction="batchmean"` sums over classes and averages over the
    batch; "mean" also divides by K, as a bare `nn.KLDivLoss()` does in the public code of Tf-KD and
    DR-KD.
    """
    return reduced(softened_kl_of_images(student, teacher, temperature).sum(), student, reduction)


def kl_from(target: Tensor, logits: Tensor, reduction: str = "batchmean") -> Tensor:
    """KL(target || softmax(logits)); target: N x K probabilities, whose gradient is cut."""
    return reduced(F.kl_div(F.log_softmax(logits, dim=1), target.detach(), reduction="sum"), logits, reduction)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k target_k log softmax(logits)_k, averaged over the batch; target: N x K, its gradient cut.

    It differs from a KL divergence by the target's entropy, so that the gradients are the same.
    """
    return -(target.detach() * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, epsilon: Tensor | float) -> Tensor:
    """(1 - epsilon) CE(z, y) + epsilon CE(z, uniform): label smoothing whose epsilon may be a tensor, of no
    dimension or one an image, which torch's own does not take and a CUDA graph needs."""
    log_probabilities = F.log_softmax(logits, dim=1)
    hard = F.nll_loss(log_probabilities, targets, reduction="none")
    return ((1 - epsilon) * hard - epsilon * log_probabilities.mean(dim=1)).mean()


def mixed_cross_entropy(logits: Tensor, targets: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share CE(z, y) + (1 - share) CE(z, y') of blended images; share: N, of the label `targets`."""
    own = F.cross_entropy(logits, targets, reduction="none")
    other = F.cross_entropy(logits, partners, reduction="none")
    return (share * own + (1 - share) * other).mean()


def virtual_teacher(logits: Tensor, targets: Tensor, correct: float, temperature: float) -> Tensor:
    """softmax(u / T), N x K: u is `correct` for the label and (1 - correct)/(K - 1) elsewhere (Tf-KD_reg).

    The softmax is one of probabilities, as in the public code: at T = 20 it is nearly uniform.
    """
    u = torch.full_like(logits, (1 - correct) / (logits.shape[1] - 1)).detach()
    return (u.scatter(1, targets.unsqueeze(1), correct) / temperature).softmax(dim=1)


def average_pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """... x H x W averaged to `size`: in equal windows where it divides H and W, else in overlapping ones, as torch's
    adaptive pooling has it, whose gradient on a GPU is not deterministic."""
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, (height // size[0], width // size[1]))


def attention_map(features: Tensor) -> Tensor:
    """N x C x H x W to N x HW: the mean over channels of F^2, each image's of l2 norm 1 (attention transfer)."""
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor, distance: str = "mean_square") -> Tensor:
    """How far two feature maps' attention maps are apart; both are pooled to the smaller height and width.

    "mean_square": the mean of squared differences over images and positions, as in the public codes;
    "l2": the norm of the difference, averaged over images, as the paper writes it.  The teacher's
    gradient is cut.
    """
    teacher = teacher.detach()
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    student, teacher = (average_pool(m, size) for m in (student, teacher))
    apart = attention_map(student) - attention_map(teacher)
    return apart.square().mean() if distance == "mean_square" else torch.linalg.vector_norm(apart, dim=1).mean()
