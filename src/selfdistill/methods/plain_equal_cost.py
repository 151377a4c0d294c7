"""Plain training for as long as a method costs in all: what its price would have bought without it."""

import torch.nn.functional as F

from selfdistill.training.method import Method, Phase

ABOUT = {
    "class": "PlainEqualCost",
    "title": "Plain, equal cost",
    "name": "Cross-entropy at equal total cost",
    "paper": None,
    "group": "controls",
    "needs": [],
    "cost": 2.33,
    "hyper": {
        "factor": {
            "default": 2.333,
            "allowed": [1.0, 100.0],
            "meaning": "epochs, as a multiple of the recipe's",
            "source": "a teacher of the student's size (1), the student (1) and the teacher's forward passes (1/3)",
        },
    },
}


class PlainEqualCost(Method):
    def phases(self, epochs):
        return [Phase(max(round(self.factor * epochs), 1))]

    def terms(self, step):
        return {"cross_entropy": F.cross_entropy(step.student.logits[-1], step.targets)}
