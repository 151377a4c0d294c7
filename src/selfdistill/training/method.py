"""What a method is to the engine, and what the engine offers to a method."""

import sys
from collections.abc import Callable
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


def mean_over_images(values: Tensor) -> Tensor:
    return values.mean(dim=0)


@dataclass
class Step:
    """What a method sees of one batch.  Outputs are float32 whatever the precision of the network.

    images: float, N x C x H x W, augmented and normalised; targets: int64, N.
    student: the outputs of the network in training on these images.
    teacher: those of the frozen teacher on the very same images, without gradient, or None.
    progress: share of the phase's epochs that are over, a float tensor of no dimension in [0, 1).
    views: the student's outputs on each view, the first being `student`; need "views".
    pair: its outputs on another image of each label, without gradient; need "pairs".
    past: N x K logits that the deepest exit gave to these images one epoch ago, None in the first
        epoch of a phase; need "memory".
    partner_targets, share: the label that was mixed in, int64 N, and the share of the image's own
        label, N; need "partners".
    batch_mean: N x ... to its mean over the images of the batch, with gradient.  A term that is no mean
        over images itself needs it where several processes share a batch; `tensor.mean(dim=0)` is this
        process's mean.
    statistics: whatever the method wants logged beside its loss terms, by name.
    """

    images: Tensor
    targets: Tensor
    student: Outputs
    teacher: Outputs | None
    progress: Tensor
    views: list[Outputs] = field(default_factory=list)
    pair: Outputs | None = None
    past: Tensor | None = None
    partner_targets: Tensor | None = None
    share: Tensor | None = None
    batch_mean: Callable[[Tensor], Tensor] = mean_over_images
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Method:
    """A way to train.  A subclass states `terms`, and `phases` if it has more than one.

    Hyper-parameters and needs stand in the file's `ABOUT`; each hyper-parameter becomes an
    attribute.  `ABOUT["needs"]` may hold

    exits: the network gets a classifier after every section, not only the last;
    teacher: `Step.teacher` is a trained network of the study;
    views: `Step.views` has two differently augmented views of every image;
    pairs: `Step.pair` is another image of the same class;
    memory: `Step.past` is what the network said of these images one epoch ago;
    partners: images are blended with others of their batch by `mix`; the hyper-parameter `alpha` is
        that of the Beta distribution of shares;
    host: the terms are computed partly on the CPU, so that no CUDA graph can hold the step.

    `state` holds whatever else must outlive a step, as tensors by name: it is saved with every
    checkpoint, and what a method keeps elsewhere is forgotten when a run is resumed.

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
        self.state: dict[str, Tensor] = {}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.about["needs"])

    def phases(self, epochs: int) -> list[Phase]:
        """The training as phases whose epochs add up to `epochs`."""
        return [Phase(epochs)]

    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Blend N x C x H x W images with partners; returns them and the share, N, of each image's own label.

        share: N, drawn from Beta(alpha, alpha); box: N x 2 in [0, 1), the centre of a region.
        """
        raise NotImplementedError

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The loss as named scalar terms, each a mean over the batch's images; their sum is minimised,
        and each is logged."""
        raise NotImplementedError
