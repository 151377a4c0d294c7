"""What a method is to the engine, and what the engine offers to a method."""

import sys
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from selfdistill.models.sections import Outputs


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a learning-rate cycle of its own.

    restart: begin from freshly initialised weights.
    learns_from_previous: the network as the previous phase left it, frozen, is this phase's teacher.
    """

    epochs: int
    restart: bool = False
    learns_from_previous: bool = False


@dataclass
class Step:
    """What a method sees of one batch.

    images: float, N x C x H x W, augmented and normalised; targets: int64, N.
    student: the outputs of the network in training on these images.
    teacher: those of the frozen teacher on the very same images, without gradient, or None.
    progress: share of the phase's epochs that are over, in [0, 1).
    statistics: whatever the method wants logged beside its loss terms, by name.
    """

    images: Tensor
    targets: Tensor
    student: Outputs
    teacher: Outputs | None
    progress: float
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Method:
    """A way to train.  A subclass states `terms`, and `phases` if it has more than one.

    Hyper-parameters and needs stand in the file's `ABOUT`; each hyper-parameter becomes an
    attribute.  `ABOUT["needs"]` may hold

    exits: the network gets a classifier after every section, not only the last;
    teacher: `Step.teacher` is a trained network of the study.

    A subclass outside a method file passes its `about`: `class Mine(Method, about={...})`.

    >>> BYOT(alpha=0.5)
    """

    about: ClassVar[dict]

    def __init_subclass__(cls, about: dict | None = None) -> None:
        cls.about = about or sys.modules[cls.__module__].ABOUT

    def __init__(self, **hyper) -> None:
        known = self.about["hyper"]
        if unknown := sorted(set(hyper) - set(known)):
            raise TypeError(f"{type(self).__name__}: no hyper-parameter {unknown}; there are {sorted(known)}")
        for name, spec in known.items():
            setattr(self, name, hyper.get(name, spec["default"]))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.about["needs"])

    def phases(self, epochs: int) -> list[Phase]:
        """The training as phases whose epochs add up to `epochs`."""
        return [Phase(epochs)]

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The loss as named scalar terms; their sum is minimised, and each is logged."""
        raise NotImplementedError
