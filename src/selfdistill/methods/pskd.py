"""PS-KD, progressive self-knowledge distillation (Kim et al., ICCV 2021, arXiv 2006.12000)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import soft_cross_entropy
from selfdistill.training.method import Method, Phase, Step

ABOUT = {"class": "PSKD", "needs": ["memory"], "hyper": {"alpha": {"default": 0.8, "allowed": [0.0, 1.0]}}}


def progressive_cross_entropy(logits: Tensor, past: Tensor, targets: Tensor, share: Tensor | float) -> Tensor:
    """CE(z, (1 - share) onehot(y) + share softmax(past)); equations 5 and 6 of the paper.

    logits: N x K; past: N x K logits of one epoch ago; share: a number or a tensor of no dimension.
    """
    hard = F.cross_entropy(logits, targets)
    return (1 - share) * hard + share * soft_cross_entropy(logits, past.softmax(dim=1))


class PSKD(Method):
    alpha: float

    def phases(self, epochs: int) -> list[Phase]:
        self.epochs = epochs
        return super().phases(epochs)

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        if step.past is None:  # the first epoch learns from the labels alone
            return {"cross_entropy": F.cross_entropy(logits, step.targets)}
        share = self.alpha * (step.progress + 1 / self.epochs)
        return {"cross_entropy": progressive_cross_entropy(logits, step.past, step.targets, share)}
