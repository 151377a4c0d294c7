"""SD / SFR: deep features teach shallow ones, with dynamic label smoothing (Fan and Hou 2021).

arXiv 2103.07350.  The full text was withdrawn by its authors and no code is public: this is a
documented reading of the abstract, and no published table exists to compare it with.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from selfdistill.training.losses import average_pool, smoothed_cross_entropy
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "SD",
    "needs": ["host"],
    "hyper": {
        "feature_weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
        "distance": {"default": "emd", "choices": ["emd", "cdf"]},
        "smoothing": {"default": 0.1, "allowed": [0.0, 1.0]},
        "dynamics": {"default": "linear", "choices": ["linear", "posterior"]},
    },
}


def descriptors(features: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """N x C x H x W as N x P x `channels`: one local descriptor for each of the P positions of `size`.

    Positions and channels are averaged in groups (many-to-one); where the numbers are not multiples of
    each other the groups overlap, as in torch's adaptive pooling.
    """
    positions = average_pool(features, size).flatten(2).transpose(1, 2)
    return average_pool(positions, (positions.shape[1], channels))


def emd_l2(shallow: Tensor, deep: Tensor) -> Tensor:
    """Earth mover's distance between the local descriptors of two feature maps, averaged over N.

    shallow: N x C x H x W; deep: N x C' x h x w with h <= H, detached.  Both are brought to h x w
    positions and min(C, C') channels.  Ground cost: squared l2, averaged over channels.  With equal
    weights on both sides the optimal flow is a one-to-one assignment, solved exactly for each image
    and detached; the gradient flows through the costs alone.
    """
    channels, size = min(shallow.shape[1], deep.shape[1]), (deep.shape[-2], deep.shape[-1])
    mine = descriptors(shallow, channels, size)
    theirs = descriptors(deep.detach(), channels, size)
    cost = (mine.unsqueeze(2) - theirs.unsqueeze(1)).square().mean(dim=3)  # N x P x P
    flow = np.stack([linear_sum_assignment(c)[1] for c in cost.detach().cpu().double().numpy()])
    return cost.gather(2, torch.from_numpy(flow).to(cost.device).unsqueeze(2)).mean()


def cdf_l2(shallow: Tensor, deep: Tensor) -> Tensor:
    """The cheap alternative: sum over positions of (CDF_shallow - CDF_deep)^2, averaged over N.

    The squared EMD of two distributions on a line: of the feature maps' energy (all channels to one: the
    mean of F^2) over the deeper map's positions, read row by row, of total 1.  Shapes as in `emd_l2`.
    """

    def cumulated(features: Tensor) -> Tensor:
        energy = average_pool(features.square().mean(dim=1), (deep.shape[-2], deep.shape[-1])).flatten(1)
        share = energy / energy.sum(dim=1, keepdim=True).clamp(min=1e-12)
        # not cumsum, which is not deterministic on a GPU: N x P x P, row by row the positions up to this one
        return share.unsqueeze(1).expand(-1, share.shape[1], -1).tril().sum(dim=2)

    return (cumulated(shallow) - cumulated(deep.detach())).square().sum(dim=1).mean()


class SD(Method):
    feature_weight: float
    distance: str
    smoothing: float
    dynamics: str

    @property
    def needs(self) -> frozenset[str]:
        return super().needs if self.distance == "emd" else frozenset()

    def terms(self, step: Step) -> dict[str, Tensor]:
        *shallow, deepest = step.student.maps
        logits, targets = step.student.logits[-1], step.targets
        grown = step.progress
        if self.dynamics == "posterior":
            grown = logits.detach().softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
        distance = emd_l2 if self.distance == "emd" else cdf_l2
        return {
            "cross_entropy": smoothed_cross_entropy(logits, targets, self.smoothing * grown),
            "local_features": self.feature_weight * sum(distance(f, deepest) for f in shallow),
        }
