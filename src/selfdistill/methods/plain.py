"""Plain training: cross-entropy on the labels, the control of every comparison."""

import torch.nn.functional as F

from selfdistill.training.method import Method

ABOUT = {
    "class": "Plain",
    "title": "Plain",
    "name": "Cross-entropy",
    "paper": None,
    "group": "controls",
    "needs": [],
    "cost": 1.0,
    "hyper": {},
}


class Plain(Method):
    def terms(self, step):
        return {"cross_entropy": F.cross_entropy(step.student.logits[-1], step.targets)}
