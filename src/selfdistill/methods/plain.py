"""Plain training: cross-entropy on the labels, the control of every comparison."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.method import Method, Step

ABOUT = {"class": "Plain", "needs": [], "hyper": {}}


class Plain(Method):
    def terms(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.student.logits[-1], step.targets)}
