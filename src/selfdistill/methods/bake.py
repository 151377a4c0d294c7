"""BAKE, self-distillation with batch knowledge ensembling (Ge et al. 2021, arXiv 2104.13298)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import kl_from
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "BAKE",
    "needs": ["positives"],
    "hyper": {
        "temperature": {"default": 4.0, "allowed": [0.01, 1000.0]},
        "weight": {"default": 1.0, "allowed": [0.0, 1000.0]},
        "omega": {"default": 0.5, "allowed": [0.0, 0.999]},
        "positives": {"default": 3, "allowed": [1, 100]},
    },
}


def propagated(features: Tensor, logits: Tensor, *, temperature: float, omega: float) -> Tensor:
    """(1 - omega) (I - omega A)^-1 softmax(z/T), B x K, exact except for rounding to the dtype of `logits`.

    features: B x D; logits: B x K.  A, B x B: the softmax of each row's cosine similarities to the others,
    its own left out.

    The inverse is the series I + omega A + (omega A)^2 + ..., whose first 2^n terms are the product of the
    I + (omega A)^(2^i), i < n.  In float32 that is 9 matrix products at omega 0.5, 15 at 0.9 and 29 at 0.999, where
    adding term by term takes 23, 157 and 16,627.  No solver: on a GPU cuSOLVER would have a workspace of its own
    inside a captured step.  The products are of doubles, which are never rounded to TensorFloat-32 (10 bits), as those
    of floats may be.
    """
    normalised = F.normalize(features.double(), dim=1)
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    power = omega * (normalised @ normalised.T).masked_fill(itself, -torch.inf).softmax(dim=1)
    total = (1 - omega) * (logits.double() / temperature).softmax(dim=1)
    for i in range(factors(omega, torch.finfo(logits.dtype).eps / 2)):
        power = power @ power if i else power
        total = torch.addmm(total, power, total)
    return total.to(logits.dtype)


def factors(omega: float, rest: float) -> int:
    """The least n with omega^(2^n) <= rest: as much as 2^n terms leave out at most, for the rows of A add up to one."""
    return math.ceil(math.log2(math.log(rest) / math.log(omega))) if omega > rest else 0


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
    temperature: float
    weight: float
    omega: float
    positives: int

    def terms(self, step: Step) -> dict[str, Tensor]:
        groups = [step.student, *step.positives]
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
