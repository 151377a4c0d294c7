"""The images of the previous batch, augmented again, as `Step.last`, with their labels and what the network said of
them one step ago; none in the first step of an epoch."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfdistill.training.method import Step
from selfdistill.training.needs import Batch, Need, Seen
from selfdistill.training.plan import Draw, Rows

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class LastBatch(Need):
    """logits: those of the deepest exit, batch x K; a process fills as many rows as it has images."""

    late = ("last",)
    logits: Tensor

    def begin_phase(self, run: "Run", restarted: bool) -> None:
        self.logits = torch.zeros(run.recipe.batch_size, len(run.dataset.classes), device=run.device)

    def streams(self, draw: Draw) -> dict[str, Rows]:
        again = draw.stream(draw.images, "augmentation of the last batch")
        return {"last": {**again, "targets": draw.labels[draw.images]}}

    def forwarded(self, batch: Batch) -> list[str]:
        return ["last"] if "last" in batch else []

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        if "last" not in seen.batch:
            return {}
        return {
            "last": seen.outputs["last"],
            "last_targets": seen.batch["last/targets"],
            "last_logits": self.logits[: len(seen.batch["last"])],
            "last_batch_size": run.recipe.batch_size,  # the smaller last one is never before another
        }

    def end_step(self, run: "Run", step: Step, batch: Batch) -> None:
        self.logits[: len(step.targets)].copy_(step.student.logits[-1].detach())

    def saved(self, run: "Run") -> dict[str, Tensor]:
        if not run.step:  # the next epoch begins without one
            return {}
        before = min(run.recipe.batch_size, len(run.labels) - (run.step - 1) * run.recipe.batch_size)
        mine = run.world.share(0, before)
        return {"logits": run.world.rows_of_all(self.logits[: mine.stop - mine.start], before)[0]}

    def restore(self, run: "Run", tensors: dict[str, Tensor]) -> None:
        if "logits" in tensors:
            rows = tensors["logits"][run.world.share(0, len(tensors["logits"]))]
            self.logits[: len(rows)].copy_(rows)
