"""Methods and a need with one fault each, which a training on a GPU that is not there must show, and a clean one."""

from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fake_cuda.audit import Found, audit
from selfdistill import methods
from selfdistill.models.sections import Outputs
from selfdistill.training.method import Method, Step
from selfdistill.training.needs.memory import Memory

ABOUT = {"title": "planted", "hyper": {}, "needs": []}


class Clean(Method, about=ABOUT):
    """What the others are but for their faults."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(step.student.logits[-1], step.targets) * self.factor(step)}

    def factor(self, step: Step) -> Any:
        return 1.0


class NumberBakedIn(Clean, about=ABOUT):
    steps = 0

    def factor(self, step: Step) -> Any:
        self.steps += 1
        return 1 + self.steps


class HostWait(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return 2.0 if float(step.progress) > 0.5 else 1.0


class DataDependentMask(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        logits = step.student.logits[-1]
        return logits[logits.argmax(1) == step.targets].mean()


class HostTensor(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return torch.tensor(0.5)


class CopiedNumber(Clean, about=ABOUT):
    steps = 0

    def factor(self, step: Step) -> Any:
        self.steps += 1
        return torch.full((), 1 / self.steps, device=step.targets.device)


class StateRebound(Clean, about=ABOUT):
    """All of it at once, which the engine lets through: so a checkpoint gives it back."""

    def factor(self, step: Step) -> Any:
        new, old = step.student.logits[-1].detach().mean(), self.state.get("mean")
        self.state = {"mean": new if old is None else 0.9 * old + 0.1 * new}
        return self.state["mean"]


class StateItemRebound(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        self.state["mean"] = step.student.logits[-1].detach().mean()
        return self.state["mean"]


class DeadCast(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        step.student.logits[-1].double()
        return 1.0


class DeadCastBehindAView(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        step.student.logits[-1].double().flatten()
        return 1.0


class StrictForbidden(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return step.student.logits[-1].cumsum(1).mean()


class StrictForbiddenBackward(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return F.adaptive_avg_pool2d(step.student.maps[-1], (1, 3)).mean()


class IndexOnTheHost(Clean, about=ABOUT):
    """An index may lie on the CPU beside a tensor on the GPU: PyTorch copies it at every step."""

    def factor(self, step: Step) -> Any:
        return step.student.logits[-1][torch.arange(4)].mean()


class MixedDevices(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return (step.student.logits[-1] * torch.ones(4)).mean()


class Draws(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        return F.dropout(step.student.logits[-1]).mean()


class Solver(Clean, about=ABOUT):
    def factor(self, step: Step) -> Any:
        square = torch.eye(4, device=step.targets.device)
        return torch.linalg.solve(square, step.student.logits[-1].T).mean()


class FullPrecision(Clean, about={**ABOUT, "needs": ["companion"]}):
    """A companion that leaves autocast."""

    def companion(self, *_: Any) -> nn.Module:
        return Unhurried()

    def factor(self, step: Step) -> Any:
        assert step.companion is not None
        return step.companion.maps[0].mean()


class Unhurried(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor, student: Outputs) -> Outputs:
        with torch.autocast(images.device.type, enabled=False):
            return Outputs([], [], [self.layer(images)])


class ForgetfulMemory(Memory):
    """A need that puts other memory in the place of what a step reads."""

    def end_epoch(self, run: Any) -> None:
        super().end_epoch(run)
        self.past = self.past.clone()


METHODS: dict[str, type[Method]] = {
    "nothing": Clean,
    "number baked in": NumberBakedIn,
    "host wait": HostWait,
    "data-dependent mask": DataDependentMask,
    "host tensor": HostTensor,
    "state rebound": StateRebound,
    "memory of a need rebound": methods.load("pskd"),
    "number copied to the GPU": CopiedNumber,
    "item of the state rebound": StateItemRebound,
    "dead cast": DeadCast,
    "dead cast behind a view": DeadCastBehindAView,
    "raises if strict": StrictForbidden,
    "raises if strict, backward": StrictForbiddenBackward,
    "index on the host": IndexOnTheHost,
    "mixed devices": MixedDevices,
    "draw": Draws,
    "solver": Solver,
    "outside of autocast": FullPrecision,
}


def found(name: str) -> Found:
    if name == "memory of a need rebound":
        with patch("selfdistill.training.needs.memory.Memory", ForgetfulMemory):
            return audit(METHODS[name](), stopped=False, epochs=3)
    return audit(METHODS[name](), stopped=False)
