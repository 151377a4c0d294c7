"""DML, deep mutual learning of two networks (Zhang et al., CVPR 2018, arXiv 1706.00384)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs
from selfdistill.training.losses import softened_kl
from selfdistill.training.method import Method, Peer, Step

ABOUT = {
    "class": "DML",
    "needs": ["companion"],
    "hyper": {
        "temperature": {"default": 1.0, "allowed": [0.01, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
    },
}


def dml_terms(logits: Tensor, peer: Tensor, targets: Tensor, *, temperature: float, weight: float) -> dict[str, Tensor]:
    """CE(z, y) + CE(v, y) + T^2 (KL(p_v || p_z) + KL(p_z || p_v)), each target detached; equations 5 and 6.

    logits, peer: N x K, of two networks of one kind that train together from different weights.
    """
    scale = weight * temperature**2
    return {
        "cross_entropy": F.cross_entropy(logits, targets),
        "peer_cross_entropy": F.cross_entropy(peer, targets),
        "from_peer": scale * softened_kl(logits, peer, temperature),
        "to_peer": scale * softened_kl(peer, logits, temperature),
    }


class DML(Method):
    temperature: float
    weight: float

    def companion(self, student: Outputs, teacher: Outputs | None, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        return Peer(fresh())

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits, peer = step.student.logits[-1], step.companion.logits[-1]
        return dml_terms(logits, peer, step.targets, temperature=self.temperature, weight=self.weight)
