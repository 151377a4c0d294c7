"""What a method is to the engine, and what the engine offers to a method."""

import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfdistill.bounds import refused
from selfdistill.errors import UserError
from selfdistill.models.sections import Outputs


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a learning-rate cycle of its own.

    restart: begin from freshly initialised weights.
    learns_from_previous: the network as the previous phase left it, frozen, is this phase's teacher.
    teacher_in_training_mode: that teacher normalises by the batch's statistics, not by its running ones.
    kept: the network that this phase ends with is kept beside the last one, as a member of an ensemble.
    """

    epochs: int
    restart: bool = False
    learns_from_previous: bool = False
    teacher_in_training_mode: bool = False
    kept: bool = False


def sum_over_images(values: Tensor) -> Tensor:
    return values.sum(dim=0)


def mean_over_images(values: Tensor) -> Tensor:
    return values.mean(dim=0)


def whole_batch(values: Tensor) -> tuple[Tensor, slice]:
    return values.detach(), slice(0, len(values))


@dataclass
class Step:
    """What a method sees of one batch.  Outputs in half precision become float32, in which losses are computed.

    images: float, N x C x H x W, augmented and normalised; targets: int64, N.
    student: the outputs of the network in training on these images.
    teacher: those of a frozen network on the very same images, without gradient, or None; need "teacher"
        (a trained network), "average" (the student's own running average) or a phase that learns from
        the previous one.
    progress: share of the phase's epochs that are over, a float tensor of no dimension in [0, 1).
    phase: its number, from 1.
    companion: what the method's `companion` gives for these images, with gradient; need "companion".
    views: the student's outputs on each view, the first being `student`; need "views".
    positives: its outputs on other images of each label, with gradient; need "positives".
    pair: its outputs on another image of each label, without gradient; need "pairs".
    past: N x K logits that the deepest exit gave to these images one epoch ago, None in the first
        epoch of a phase; need "memory".
    last, last_targets, last_logits: the student's outputs on the images of the batch before, augmented
        again, with gradient, their labels, and the logits that the deepest exit gave them one step ago;
        None in the first step of an epoch; need "last_batch".
    batch_size, last_batch_size: images of both batches, over all processes.
    partner_targets, share: the label that was mixed in, int64 N, and the share of the image's own
        label, N; need "partners".
    batch_mean, batch_sum: N x ... to its mean or sum over the images of the batch, with gradient.  A term
        that is not a mean over images needs them where several processes share a batch;
        `tensor.mean(dim=0)` is this process's mean.
    whole_batch: N x ... to the rows of all processes, without gradient, and where this one's rows are.
    statistics: whatever the method wants logged beside its loss terms, by name.
    more: what a need gives that has no field here, by name.
    """

    images: Tensor
    targets: Tensor
    student: Outputs
    teacher: Outputs | None = None
    progress: Tensor = field(default_factory=lambda: torch.zeros(()))
    views: list[Outputs] = field(default_factory=list)
    pair: Outputs | None = None
    past: Tensor | None = None
    partner_targets: Tensor | None = None
    share: Tensor | None = None
    batch_mean: Callable[[Tensor], Tensor] = mean_over_images
    batch_sum: Callable[[Tensor], Tensor] = sum_over_images
    statistics: dict[str, Tensor] = field(default_factory=dict)
    phase: int = 1
    companion: Outputs | None = None
    positives: list[Outputs] = field(default_factory=list)
    last: Outputs | None = None
    last_targets: Tensor | None = None
    last_logits: Tensor | None = None
    batch_size: int = 0
    last_batch_size: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    whole_batch: Callable[[Tensor], tuple[Tensor, slice]] = whole_batch

    def __post_init__(self) -> None:
        self.student = in_single_precision("student", self.student)
        for name in ("teacher", "pair", "companion", "last"):
            if (outputs := getattr(self, name)) is not None:
                setattr(self, name, in_single_precision(name, outputs))
        for name in ("views", "positives"):
            setattr(self, name, [in_single_precision(name, outputs) for outputs in getattr(self, name)])
        self.batch_size = self.batch_size or len(self.targets)
        self.last_batch_size = self.last_batch_size or (len(self.last_targets) if self.last_targets is not None else 0)


def in_single_precision(name: str, outputs: Outputs) -> Outputs:
    """What a step holds as `name`, half precisions as float32.  StepError: it is not an Outputs."""
    if not isinstance(outputs, Outputs):
        found = "tensor" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise StepError(
            f"Step: {name} is a {found}; allowed: Outputs, what a network of this package gives, or of logits "
            "z alone: Outputs([z], [], [])"
        )
    return outputs.float()


class StepError(UserError, ValueError):
    """A step lacks what the method needs, or does not fit it; the message says what and what is allowed."""


class HyperParameterError(UserError, TypeError, ValueError):
    """A method's hyper-parameters are not allowed; the message says which, and what is."""


class StateError(UserError, RuntimeError):
    """A method put another tensor in the place of one that it keeps, or something else than a tensor."""


class State(UserDict[str, Tensor]):
    """Tensors by name, each of which stays the same tensor once it is there.  (A dict's `update` would go past
    `__setitem__`; that of a UserDict does not.)"""

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise StateError(f"state[{name!r}] is a {type(tensor).__name__}; allowed: a tensor")
        if name in self and self[name] is not tensor:
            raise StateError(
                f"state[{name!r}] is there already, and a CUDA graph reads it; write into it: "
                f"self.state[{name!r}].copy_(...)"
            )
        super().__setitem__(name, tensor)


class Peer(nn.Module):
    """A companion that is another network on the same images; the run keeps it as a member."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, student: Outputs) -> Outputs:
        return self.network(images)


class Method:
    """A way to train.  A subclass states `terms`, and `phases` if it has more than one.

    Hyper-parameters and needs stand in the file's `ABOUT`; each hyper-parameter becomes an
    attribute.  `ABOUT["needs"]` may hold

    exits: the network gets a classifier after every section, not only the last;
    teacher: `Step.teacher` is a trained network of the study;
    average: `Step.teacher` is the running average of the student's weights; the hyper-parameter `decay`
        is the share that it keeps at each step;
    companion: `companion` makes a module that is trained beside the network and then left behind;
    views: `Step.views` has two differently augmented views of every image;
    positives: `Step.positives` has as many other images of the same class as the hyper-parameter `positives`
        says;
    pairs: `Step.pair` is another image of the same class, without gradient;
    memory: `Step.past` is what the network said of these images one epoch ago;
    last_batch: the images of the batch before come again (`Step.last`);
    partners: images are blended with others of their batch by `mix`; the hyper-parameter `alpha` is
        that of the Beta distribution of shares;
    host: the terms are computed partly on the CPU, so that no CUDA graph can hold the step.

    `state` holds whatever else must outlive a step, as tensors by name: it is saved with every
    checkpoint, and what a method keeps elsewhere is forgotten when a run is resumed.  A tensor in it is written in
    place, `self.state["x"].copy_(...)`: a CUDA graph would go on reading one that another took the place of.

    A subclass outside a method file passes its `about`: `class Mine(Method, about={...})`.

    In a loop of your own, call it with a `Step`:

    >>> terms = BYOT(alpha=0.5)(Step(images, targets, network(images)))
    >>> sum(terms.values()).backward()
    """

    about: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, about: dict[str, Any] | None = None) -> None:
        cls.about = about or sys.modules[cls.__module__].ABOUT

    def __init__(self, **hyper: Any) -> None:
        """HyperParameterError: names that there are not, and values out of the bounds that a study has, too."""
        known = self.about["hyper"]
        faults = [
            f"no hyper-parameter {name!r}; there are {', '.join(known) or 'none'}"
            for name in hyper
            if name not in known
        ]
        for name, spec in known.items():
            value = hyper.get(name, spec["default"])
            if expected := refused(value, spec):
                faults.append(f"{name}: {value!r} is not allowed; allowed: {expected}")
            setattr(self, name, value)
        if faults:
            raise HyperParameterError(f"{type(self).__name__}: {'; '.join(faults)}")
        self.state = State()

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, tensors: Mapping[str, Tensor]) -> None:
        """All of it at once, as a checkpoint gives it back."""
        self._state = State(tensors)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.about["needs"])

    def phases(self, epochs: int) -> list[Phase]:
        """The training as phases.  `epochs` is what the recipe gives to every method; a method that trains
        for longer does so openly, and its cost counts all of it."""
        return [Phase(epochs)]

    def mix(self, images: Tensor, partners: Tensor, share: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Blend N x C x H x W images with partners; returns them and the share, N, of each image's own label.

        share: N, drawn from Beta(alpha, alpha); box: N x 2 in [0, 1), the centre of a region.
        """
        raise NotImplementedError

    def companion(self, student: Outputs, teacher: Outputs | None, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        """A module to be trained beside the network, from (images, the student's Outputs) to Outputs.

        student, teacher: the outputs of a dry run on one image, for their shapes; fresh: another network
        of the student's kind with weights of its own.  None if these hyper-parameters need none.
        """
        return None

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The loss as named scalar terms, each a mean over the batch's images; their sum is minimised,
        and each is logged."""
        raise NotImplementedError

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """`terms` of a step, in full precision also under autocast, where a matrix product in bfloat16 moves a
        loss by 1e-3.  Raises StepError if the step lacks something or does not fit."""
        if fault := next(self.faults(step), None):
            raise StepError(f"{type(self).__name__}: {fault}")
        with torch.autocast(step.targets.device.type, enabled=False):
            return self.terms(step)

    def faults(self, step: Step) -> Iterator[str]:
        """What is wrong with a step, in words.  On a GPU labels are not looked at, which would wait for it."""
        logits = step.student.logits
        if logits[-1].ndim != 2:
            yield f"the logits are of shape {list(logits[-1].shape)}; allowed: images x classes"
            return
        classes = logits[-1].shape[1]
        if classes < 2:
            yield f"the network knows {classes} class; allowed: 2 or more"
        if not len(step.targets):
            yield "the batch is empty; allowed: 1 image or more"
        if "exits" in self.needs and len(logits) < 2:
            yield "the network has 1 exit; allowed: 2 or more (a network with a classifier after every section)"
        if {"teacher", "average"} & self.needs and step.teacher is None:
            yield "the step has no teacher; allowed: the Outputs of a frozen network on the same images"
        if step.teacher is not None and step.teacher.classes != classes:
            yield f"the teacher knows {step.teacher.classes} classes; allowed: {classes}, as many as the student"
        for need, value in (
            ("views", len(step.views) > 1),
            ("positives", step.positives),
            ("pairs", step.pair),
            ("partners", step.partner_targets is not None),
            ("companion", step.companion),
        ):
            if need in self.needs and not value:
                yield f"the step has no {need}; see Step for what they are"
        if step.targets.dtype != torch.int64 or step.targets.shape != logits[-1].shape[:1]:
            kind = f"{step.targets.dtype} of shape {list(step.targets.shape)}"
            yield f"targets are {kind}; allowed: torch.int64 of shape {[len(logits[-1])]}, one an image"
        elif step.targets.device.type == "cpu" and len(step.targets):
            low, high = step.targets.aminmax()
            if low < 0 or high >= classes:
                yield f"targets from {int(low)} to {int(high)}; allowed: 0 to {classes - 1}, one of {classes} classes"
