"""BAKE, self-distillation with batch knowledge ensembling (Ge et al. 2021, arXiv 2104.13298)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from
from selfdistill.training.method import Method

ABOUT = {
    "class": "BAKE",
    "title": "BAKE",
    "name": "Self-distillation with Batch Knowledge Ensembling",
    "paper": "2104.13298",
    "group": "teacher-free rivals",
    "needs": ["mates"],
    "cost": 4.0,
    "hyper": {
        "temperature": {
            "default": 4.0,
            "allowed": [0.01, 1000.0],
            "meaning": "T of the softened distributions",
            "source": "public code @07c4f66, small_scale/train.py",
        },
        "weight": {
            "default": 1.0,
            "allowed": [0.0, 1000.0],
            "meaning": "lambda, weight of T^2 KL to the propagated predictions",
            "source": "public code @07c4f66, small_scale/train.py",
        },
        "omega": {
            "default": 0.5,
            "allowed": [0.0, 0.999],
            "meaning": "share that a prediction takes from the others at each turn of the propagation",
            "source": "public code @07c4f66, small_scale/train.py; 0.9 for Tiny ImageNet",
        },
        "mates": {
            "default": 3,
            "allowed": [1, 100],
            "meaning": "M, other images of the same class beside each image of a batch",
            "source": "public code @07c4f66, small_scale/train.py; 1 for Tiny ImageNet",
        },
    },
}


def propagated(features: Tensor, logits: Tensor, *, temperature: float, omega: float) -> Tensor:
    """(1 - omega) (I - omega A)^-1 softmax(z/T), B x K.

    features: B x D; logits: B x K.  A, B x B: the softmax of each row's cosine similarities to the others,
    its own left out.
    """
    normalised = F.normalize(features, dim=1)
    itself = torch.eye(len(features), dtype=features.dtype, device=features.device)
    affinity = (normalised @ normalised.T).masked_fill(itself.bool(), -torch.inf).softmax(dim=1)
    predictions = (1 - omega) * (logits / temperature).softmax(dim=1)
    # _ex: the other form waits for the GPU to see whether the matrix is singular; this one is
    # diagonally dominant
    return torch.linalg.solve_ex(itself - omega * affinity, predictions).result


def bake_terms(
    logits: Tensor, targets: Tensor, ensemble: Tensor, *, temperature: float, weight: float
) -> dict[str, Tensor]:
    """CE(z, y) + lambda T^2 KL(Q || softmax(z/T)).

    logits: B x K; ensemble: B x K, the propagated predictions Q of these images, detached.
    """
    return {
        "cross_entropy": F.cross_entropy(logits, targets),
        "batch_ensemble": weight * temperature**2 * kl_from(ensemble, logits / temperature),
    }


class BAKE(Method):
    def terms(self, step):
        groups = [step.student, *step.mates]
        rows = [step.whole_batch(g.features[-1]) for g in groups]
        logits = [step.whole_batch(g.logits[-1])[0] for g in groups]
        ensemble = propagated(
            torch.cat([f for f, _ in rows]), torch.cat(logits), temperature=self.temperature, omega=self.omega
        )
        mine = [part[rows[0][1]] for part in ensemble.chunk(len(groups))]
        return bake_terms(
            torch.cat([g.logits[-1] for g in groups]),
            step.targets.repeat(len(groups)),
            torch.cat(mine),
            temperature=self.temperature,
            weight=self.weight,
        )
