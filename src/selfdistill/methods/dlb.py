"""DLB, self-distillation from the last mini-batch (Shen et al., CVPR 2022, arXiv 2203.16172)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.training.losses import softened_kl_of_images
from selfdistill.training.method import Method, Step, sum_over_images

ABOUT = {
    "class": "DLB",
    "needs": ["last_batch"],
    "hyper": {
        "temperature": {"default": 3.0, "allowed": [0.01, 1000.0]},
        "alpha": {"default": 1.0, "allowed": [0.0, 1000.0]},
    },
}


def dlb_terms(
    logits: Tensor,
    targets: Tensor,
    again: Tensor,
    again_targets: Tensor,
    before: Tensor,
    *,
    temperature: float,
    alpha: float,
    batch_sum: Callable[[Tensor], Tensor] = sum_over_images,
    sizes: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """CE over both batches + alpha T^2 KL(softmax(before/T) || softmax(again/T)).

    logits: N x K, of this batch; again: M x K, of the last batch's images, augmented again; before: M x K,
    what the network said of them one step ago, detached.  Where several processes share the batches,
    `batch_sum` sums over all of them and `sizes` are both batches' whole sizes.
    """
    whole, whole_last = sizes or (len(logits), len(again))
    both, labels = torch.cat([again, logits]), torch.cat([again_targets, targets])
    kl = batch_sum(softened_kl_of_images(again, before, temperature)) / whole_last
    return {
        "cross_entropy": batch_sum(F.cross_entropy(both, labels, reduction="none")) / (whole + whole_last),
        "last_batch": alpha * temperature**2 * kl,
    }


class DLB(Method):
    temperature: float
    alpha: float

    def terms(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits[-1]
        if step.last is None:  # the first step of an epoch
            zero = logits.new_zeros(())
            return {"cross_entropy": F.cross_entropy(logits, step.targets), "last_batch": zero}
        return dlb_terms(
            logits,
            step.targets,
            step.last.logits[-1],
            step.last_targets,
            step.last_logits,
            temperature=self.temperature,
            alpha=self.alpha,
            batch_sum=step.batch_sum,
            sizes=(step.batch_size, step.last_batch_size),
        )
