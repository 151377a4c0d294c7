"""Early exit: an image leaves a network at the first exit that is sure enough of it.

How sure an exit is: the largest of its probabilities.  One threshold for all exits is the rule of BranchyNet-like
networks; thresholds of each exit that keep a budget are "budgeted batch classification" of MSDNet (Huang et al. 2018,
arXiv 1703.09844).  All are chosen on validation images.

An image that leaves at exit k has also paid for the exits before it, which were not sure.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.models.cut import CutNetwork
from selfdistill.models.sections import SectionedNetwork
from selfdistill.training.cost import counted_flops, inference_macs

NEVER = math.inf  # a threshold that no exit reaches
CANDIDATES = 201  # thresholds that `lossless_threshold` tries


def confidence(logits: Tensor) -> Tensor:
    """exits x N x K logits -> the largest probability, exits x N doubles."""
    return logits.double().softmax(dim=2).amax(dim=2)


def exits_taken(sure: Tensor, thresholds: Sequence[float]) -> Tensor:
    """At which exit each image leaves, from 0, int64 N: the first whose confidence reaches its threshold, the last
    whatever it says.

    sure: exits x N; thresholds: one of each exit but the last.
    """
    reached = sure[:-1] >= torch.tensor(thresholds, dtype=sure.dtype).unsqueeze(1)
    return torch.cat([reached, torch.ones_like(sure[:1], dtype=torch.bool)]).int().argmax(dim=0)


def mean_macs(taken: Tensor, macs: Sequence[int]) -> float:
    """Multiply-adds an image; macs: of one that leaves at each exit (`leaving_macs`)."""
    return torch.tensor(macs, dtype=torch.float64)[taken].mean().item()


# ---- thresholds, from validation images: sure is exits x M ----


def refuse_below(least: int, budget: float) -> None:
    """ValueError: a budget below the first exit's cost."""
    if budget < least:
        raise ValueError(f"a budget of {budget:.15g} multiply-adds is not allowed; allowed: from {least:.15g}")


def shares_of_budget(macs: Sequence[int], budget: float) -> list[float]:
    """Which share of the images leaves at each exit: proportional to r^k, of exits k = 1, 2, ..., with the r at which
    the mean cost is the budget.

    Huang et al. write r = 1 - q, q the chance to leave at an exit; above the mean cost of equal shares r is more
    than 1, as in their code.  ValueError: a budget below the first exit's cost.
    """
    refuse_below(macs[0], budget)

    def shares(log_r: float) -> list[float]:
        powers = torch.arange(len(macs), dtype=torch.float64) * log_r
        return powers.softmax(dim=0).tolist()

    low, high = -50.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        cost = sum(share * cost for share, cost in zip(shares(middle), macs, strict=True))
        low, high = (middle, high) if cost <= budget else (low, middle)
    return shares(low)


def budget_thresholds(sure: Tensor, macs: Sequence[int], budget: float) -> list[float]:
    """A threshold of each exit but the last, so that these images cost at most the budget on average: from the first
    exit on, the surest of those that are left leave, as many as `shares_of_budget` says."""
    images, left = sure.shape[1], torch.ones_like(sure[0], dtype=torch.bool)
    thresholds, due = [], 0.0
    for k, share in enumerate(shares_of_budget(macs, budget)[:-1]):
        due += share
        # rounded up: one image more that leaves early costs less, not more
        count = math.ceil(images * due - 1e-6) - int((~left).sum())
        here = sure[k][left].sort(descending=True).values
        thresholds.append(here[count - 1].item() if count > 0 else NEVER)
        left &= sure[k] < thresholds[-1]
    return thresholds


def budget_threshold(sure: Tensor, macs: Sequence[int], budget: float) -> float:
    """The largest threshold, the same at every exit, with which these images cost at most the budget on average.
    ValueError: a budget below the first exit's cost."""
    refuse_below(macs[0], budget)
    candidates = [*sure[:-1].unique().tolist(), NEVER]  # between two of them nothing changes
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        cost = mean_macs(exits_taken(sure, [candidates[middle]] * (len(sure) - 1)), macs)
        low, high = (middle, high) if cost <= budget else (low, middle - 1)
    return candidates[low]


def lossless_threshold(sure: Tensor, right: Tensor) -> float:
    """The smallest threshold, the same at every exit, with which no fewer images are right than at the deepest exit;
    of CANDIDATES that part the shallow confidences evenly.  right: exits x M booleans."""
    wanted = right[-1].sum()
    for threshold in spread(sure[:-1].flatten(), CANDIDATES):
        taken = exits_taken(sure, [threshold] * (len(sure) - 1))
        if right.gather(0, taken.unsqueeze(0)).sum() >= wanted:
            return threshold
    return NEVER


def spread(values: Tensor, count: int) -> list[float]:
    """So many of the values, from the smallest to the largest, at equal steps of rank."""
    ordered = values.sort().values
    places = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64).round().long()
    return ordered[places].unique().tolist()


# ---- the network itself ----


@torch.no_grad()
def leaving_macs(network: SectionedNetwork) -> list[int]:
    """Multiply-adds of one image that leaves at each exit, with those of the exits that it passed."""
    image = torch.zeros(1, *network.input_shape, device=next(network.parameters()).device)
    upto, _ = inference_macs(network, network.input_shape)
    passed, found = 0, []
    for macs, one in zip(upto, [*network.exits, None], strict=True):
        found.append(macs + passed)
        with counted_flops(one) as flops:
            network(image)
        passed += flops.total // 2
    return found


class Left(Exception):
    """All images have left: what lies behind their exit does not run."""


@torch.no_grad()
def leave_early(network: SectionedNetwork, images: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The exit that each image leaves at, from 0, int64 N, and its logits there, N x K.  A section runs with the images
    that have not left before it.

    images: N x C x H x W floats; thresholds: as of `exits_taken`; the network is in evaluation mode.
    """
    exits: list[Any] = list(network.exits)
    there = torch.arange(len(images), device=images.device)
    found: list[tuple[int, Tensor, Tensor]] = []  # an exit, which images leave there, and their logits

    def look(k: int, as_map: Callable[[Tensor], Tensor], module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal there
        logits = exits[k].classifier(exits[k].bottleneck(as_map(output)).mean(dim=(2, 3)))
        sure = confidence(logits[None])[0] >= thresholds[k]
        if not sure.any():
            return output
        found.append((k, there[sure], logits[sure]))
        there = there[~sure]
        if not len(there):
            raise Left
        return output[~sure]

    hooks = [
        module.register_forward_hook(partial(look, k, as_map))
        for k, (module, as_map) in enumerate(sections_of(network)[: len(exits)])
    ]
    try:
        logits = network.deepest()(images)
        found.append((network.exit_count - 1, there, logits))
    except Left:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    order = torch.cat([images for _, images, _ in found]).argsort()
    taken = torch.cat([torch.full_like(images, k) for k, images, _ in found])
    return taken[order], torch.cat([logits for _, _, logits in found])[order]


def sections_of(network: SectionedNetwork) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The module after which each section ends, and how its output becomes a map."""
    if isinstance(network, CutNetwork):
        modules = [network.backbone.get_submodule(name) for name in network.section_names]
        return list(zip(modules, (partial(network.as_map, name) for name in network.section_names), strict=True))
    return [(section, lambda output: output) for section in network.backbone.sections]
