"""What a method needs beside images, labels and its network: one file a need, found by its name.

The file `last_batch.py` holds the class `LastBatch`.  It says all that the need asks of a training: which rows of the
epoch's plan it draws, what goes through the network, what the method's `Step` gets, what it does after a step, and
what a checkpoint holds of it.  The engine goes through the needs of its method and knows none of them; nothing
here imports one, so that a training depends only on the needs of its own method.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selfdistill.errors import UserError
from selfdistill.models.sections import Outputs
from selfdistill.training.method import Method, Step
from selfdistill.training.plan import Draw, Rows

if TYPE_CHECKING:
    from selfdistill.training.engine import Run

Batch = Mapping[str, Tensor]


class NeedError(UserError, ValueError):
    """The need does not exist, or a method takes one that its `ABOUT` does not list."""


@dataclass(frozen=True)
class Seen:
    """What has been computed of a batch when its needs say what the method gets.

    batch: see `source.batches`.  images: float, N x C x H x W, as the network saw them.
    outputs: those with gradient, of "main" and of each stream that a need had forwarded.
    beside: those of each module that is trained beside the network, by its need.
    network: from normalised images to what the network, in training, says of them.
    """

    batch: Batch
    images: Tensor
    outputs: Mapping[str, Outputs]
    beside: Mapping[str, Outputs]
    network: Callable[[Tensor], Outputs]


class Need:
    """One need of one run; a subclass defines only what it asks for.

    late: its streams that are served one batch late: a step gets the rows of the batch before.
    graphable: whether a step that serves it can be captured as a CUDA graph.  What a step computes with must then
        stay the same tensors throughout a phase, written in place.
    form: steps of one form do the same operations; a need that changes what they do changes it between epochs.
    module: trained beside the network, from (images, the network's Outputs) to Outputs, or None.
    """

    late: tuple[str, ...] = ()
    graphable = True

    def __init__(self, method: Any) -> None:
        """method: a `Method` with the hyper-parameters that the need reads."""
        self.method = method
        self.form = ""
        self.module: nn.Module | None = None

    def misfit(self, run: "Run") -> str | None:
        """Why network, teacher, method and data cannot work together, in words."""
        return None

    def begin_phase(self, run: "Run", restarted: bool) -> None:
        """Make what the phase begins with.  restarted: the network's weights are fresh."""

    def begin_epoch(self, run: "Run", phase_epoch: int) -> None:
        """phase_epoch: epochs of the phase that are over."""

    def begin_step(self, steps: int) -> None:
        """Outside of any CUDA graph.  steps: of the phase that are over."""

    def streams(self, draw: Draw) -> dict[str, Rows]:
        """Streams of images for the epoch's plan, by name: tables of one row for each row of `draw.main`."""
        return {}

    def blended(self, run: "Run", images: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The normalised images as the network is to see them, and what `Step` gets of that, by name."""
        return images, {}

    def forwarded(self, batch: Batch) -> list[str]:
        """The streams that go through the network together with the batch, with gradient."""
        return []

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        """What `Step` gets, by the names of its fields; under another name, in `Step.more`.  Called without
        gradient and under the run's autocast."""
        return {}

    def end_step(self, run: "Run", step: Step, batch: Batch) -> None:
        """After the update of the weights."""

    def end_epoch(self, run: "Run") -> None: ...

    def networks(self) -> list[nn.Module]:
        """What a step computes with beside the network, whose operations count as its cost."""
        return [self.module] if self.module is not None else []

    def members(self) -> dict[str, dict[str, Tensor]]:
        """States of networks that the run leaves beside its own, by name."""
        return {}

    def saved(self, run: "Run") -> dict[str, Tensor]:
        """What a checkpoint holds, over all processes; called in each of them."""
        return {}

    def restore(self, run: "Run", tensors: dict[str, Tensor]) -> None:
        """Restore what `saved` described, after `begin_phase`, in each process."""


def names() -> list[str]:
    """Every need's name, which is its file's, sorted."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> type[Need]:
    """The class of a need.  NeedError: there is none of this name."""
    if name not in names():
        raise NeedError(f"no need {name!r}; there are {', '.join(names())}")
    return getattr(import_module(f"{__name__}.{name}"), "".join(part.capitalize() for part in name.split("_")))


def of(method: Method) -> dict[str, Need]:
    """The needs of a method with its hyper-parameters, by name, sorted.

    NeedError: one that does not exist, or that the method's `ABOUT` does not list: a training's hash would miss it.
    """
    if unlisted := sorted(method.needs - set(method.about["needs"])):
        raise NeedError(
            f"{type(method).__name__}: it needs {', '.join(unlisted)}; allowed: what its ABOUT lists, of which its "
            "`needs` may leave some out"
        )
    return {name: load(name)(method) for name in sorted(method.needs)}


def late(needs: Iterable[Need]) -> frozenset[str]:
    return frozenset(name for need in needs for name in need.late)
