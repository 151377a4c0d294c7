"""The running average of the network's weights, as `Step.teacher`; the hyper-parameter `decay` is the share that it
keeps at each step."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdistill.training.method import Step
from selfdistill.training.needs import Batch, Need, Seen

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Average(Need):
    """It normalises by the batch, as in the public code of Mean Teacher: the running statistics of an earlier
    network would not fit it."""

    network: nn.Module
    decay: Tensor

    def begin_phase(self, run: "Run", restarted: bool) -> None:
        self.network = run.reference(run.network, training=True)
        self.decay = torch.zeros((), device=run.device)

    def begin_step(self, steps: int) -> None:
        # the plain mean of all states so far, until `decay` keeps more (Mean Teacher's public code)
        self.decay.fill_(min(1 - 1 / (steps + 2), self.method.decay))

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"teacher": self.network(seen.images)}

    def end_step(self, run: "Run", step: Step, batch: Batch) -> None:
        move_average(self.network, run.network, self.decay)

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def members(self) -> dict[str, dict[str, Tensor]]:
        return {"average": self.network.state_dict()}

    def saved(self, run: "Run") -> dict[str, Tensor]:
        return self.network.state_dict()

    def restore(self, run: "Run", tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: Tensor) -> None:
    """average <- decay average + (1 - decay) network, of the weights; decay: a tensor of no dimension."""
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
