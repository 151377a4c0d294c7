"""Label smoothing (Szegedy et al. 2016, section 7)."""

import torch.nn.functional as F

from selfdistill.training.losses import smoothed_cross_entropy
from selfdistill.training.method import Method

ABOUT = {
    "class": "LabelSmoothing",
    "title": "Label smoothing",
    "name": "Label smoothing",
    "paper": "1512.00567",
    "group": "teacher-free rivals",
    "needs": [],
    "cost": 1.0,
    "hyper": {
        "epsilon": {
            "default": 0.1,
            "allowed": [0.0, 1.0],
            "meaning": "share of the target that is taken from the label and spread",
            "source": "Szegedy et al. 2016, section 7",
        },
        "spread": {
            "default": "all",
            "choices": ["all", "others"],
            "meaning": "evenly over all K classes, the label's included, or over the other K - 1",
            "source": "all: Szegedy et al. 2016 and torch; others: Tf-KD my_loss_function.py @d000ab3",
        },
    },
}


class LabelSmoothing(Method):
    def terms(self, step):
        logits = step.student.logits[-1]
        if self.spread == "all":
            return {"cross_entropy": F.cross_entropy(logits, step.targets, label_smoothing=self.epsilon)}
        # epsilon/(K-1) on each of the others is K/(K-1) epsilon spread over all, which gives the label its part
        classes = logits.shape[1]
        epsilon = self.epsilon * classes / (classes - 1)
        return {"cross_entropy": smoothed_cross_entropy(logits, step.targets, epsilon)}
