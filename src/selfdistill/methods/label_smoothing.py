"""Label smoothing (Szegedy et al. 2016, section 7)."""

import torch.nn.functional as F

from selfdistill.training.method import Method

ABOUT = {
    "class": "LabelSmoothing",
    "title": "Label smoothing",
    "name": "Label smoothing",
    "paper": "1512.00567",
    "group": "controls",
    "needs": [],
    "hyper": {
        "epsilon": {
            "default": 0.1,
            "allowed": [0.0, 1.0],
            "meaning": "share of the target spread evenly over all K classes",
            "source": "Szegedy et al. 2016, section 7",
        },
    },
}


class LabelSmoothing(Method):
    def terms(self, step):
        logits = step.student.logits[-1]
        return {"cross_entropy": F.cross_entropy(logits, step.targets, label_smoothing=self.epsilon)}
