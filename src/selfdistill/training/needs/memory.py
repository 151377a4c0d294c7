"""What the network said of these images one epoch ago, as `Step.past`; None in the first epoch of a phase."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfdistill.training.method import Step
from selfdistill.training.needs import Batch, Need, Seen

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Memory(Need):
    """past, fresh: N x K logits of the deepest exit for all training images, of the last epoch and of this one; each
    of several processes fills its rows of `fresh`, which is zero elsewhere."""

    past: Tensor
    fresh: Tensor

    def begin_phase(self, run: "Run", restarted: bool) -> None:
        shape = len(run.labels), len(run.dataset.classes)
        self.past, self.fresh = (torch.zeros(shape, device=run.device) for _ in range(2))

    def begin_epoch(self, run: "Run", phase_epoch: int) -> None:
        self.form = "remembers" if phase_epoch else ""

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"past": self.past[seen.batch["index"]] if self.form else None}

    def end_step(self, run: "Run", step: Step, batch: Batch) -> None:
        self.fresh.index_copy_(0, batch["index"], step.student.logits[-1].detach())

    def end_epoch(self, run: "Run") -> None:
        self.past.copy_(run.world.sum(self.fresh))
        self.fresh.zero_()

    def saved(self, run: "Run") -> dict[str, Tensor]:
        return {"past": self.past, "fresh": run.world.sum(self.fresh)}

    def restore(self, run: "Run", tensors: dict[str, Tensor]) -> None:
        self.past.copy_(tensors["past"])
        if run.world.rank == 0:  # the sum over all processes: one of them takes it up again
            self.fresh.copy_(tensors["fresh"])
