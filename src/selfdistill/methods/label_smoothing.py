"""Label smoothing (Szegedy et al. 2016, section 7)."""

import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import smoothed_cross_entropy
from selfdistill.training.method import Method, Step

ABOUT = {
    "class": "LabelSmoothing",
    "needs": [],
    "hyper": {
        "epsilon": {"default": 0.1, "allowed": [0.0, 1.0]},
        "spread": {"default": "all", "choices": ["all", "others"]},
    },
}


def label_smoothing(logits: Tensor, targets: Tensor, *, epsilon: float, spread: str) -> Tensor:
    """CE(z, q), logits N x K: q is 1 - epsilon on the label, and epsilon is spread evenly over all K classes
    ("all", section 7 of the paper: the label has epsilon / K, too) or over the other K - 1 ("others")."""
    if spread == "all":
        return F.cross_entropy(logits, targets, label_smoothing=epsilon)
    # epsilon/(K-1) on each of the others is K/(K-1) epsilon spread over all, which gives the label its part
    classes = logits.shape[1]
    return smoothed_cross_entropy(logits, targets, epsilon * classes / (classes - 1))


class LabelSmoothing(Method):
    epsilon: float
    spread: str

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        return {"cross_entropy": label_smoothing(logits, step.targets, epsilon=self.epsilon, spread=self.spread)}
