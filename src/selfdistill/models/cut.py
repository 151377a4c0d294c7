"""Any module as a backbone, cut into sections after some of its modules, which are found by name."""

import copy
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.models.sections import SectionedNetwork, Shape

AsMap = Callable[[str, Tensor], Tensor]


def unchanged(name: str, output: Tensor) -> Tensor:
    return output


def cut(
    backbone: nn.Module,
    sections: list[str],
    *,
    classifier: str,
    input_shape: Shape,
    exit_width: int | None = None,
    as_map: AsMap = unchanged,
) -> "CutNetwork":
    """A backbone of torchvision, timm or your own, cut into sections after the modules of these names.

    sections: shallow to deep, each the name of a module whose output is N x C x H x W, or is made so by
    `as_map(name, output)`; classifier: the name of the linear layer, or 1x1 convolution, that gives the logits;
    input_shape: C, H, W of the images.  With exit_width, the width of their bottlenecks, every section but the
    last gets an exit that fits its map.  The backbone is used, not copied.  Raises ValueError for a name that is
    not there or does not fit.

    >>> network = cut(torchvision.models.resnet18(), ["layer1", "layer2", "layer3", "layer4"],
    ...               classifier="fc", input_shape=(3, 224, 224), exit_width=128)
    """
    layer = dict(backbone.named_modules()).get(classifier)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        classes = layer.out_channels
    elif isinstance(layer, nn.Linear):
        classes = layer.out_features
    elif layer is None:
        classes = 0  # refused below, with the nearest names
    else:
        raise ValueError(
            f"{classifier}: {type(layer).__name__} is no classifier; allowed: the last nn.Linear or 1x1 nn.Conv2d"
        )
    network = CutNetwork(
        backbone,
        sections,
        classifier,
        as_map,
        input_shape=input_shape,
        classes=classes,
        exit_width=exit_width,
    )
    return network.to(next(backbone.parameters()).device)


class CutNetwork(SectionedNetwork):
    """The backbone runs unchanged, and hooks read what passes; so its own weights are trained, and it may do
    anything between its last section and its classifier.

    For a shallow exit the same forward pass runs with everything behind the section left out: see `behind`.
    """

    def __init__(
        self, backbone: nn.Module, sections: list[str], classifier: str, as_map: AsMap, **arguments: Any
    ) -> None:
        named = dict(backbone.named_modules())
        for name in (*sections, classifier):
            if name not in named:
                close = difflib.get_close_matches(name, [n for n in named if n], n=3)
                raise ValueError(f"no module {name!r} in {type(backbone).__name__}; the nearest: {', '.join(close)}")
        self.section_names, self.classifier_name, self.as_map = list(sections), classifier, as_map
        self.behind: dict[Shape, dict[str, dict[str, Call]]] = {}  # each section, for each size of images
        super().__init__(backbone, **arguments)

    @property
    def section_count(self) -> int:
        return len(self.section_names)

    def whole(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        seen: dict[str, Tensor] = {}

        def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name], seen[f"input of {name}"] = output, inputs[0]

        watched = [*self.section_names, self.classifier_name]
        hooks = [self.backbone.get_submodule(name).register_forward_hook(partial(look, name)) for name in watched]
        try:
            logits = self.backbone(images)
        finally:
            for hook in hooks:
                hook.remove()
        for name in watched:
            if name not in seen:
                raise ValueError(f"{name}: this module does not run in the backbone's forward pass")
        maps = [self.as_map(name, seen[name]) for name in self.section_names]
        for name, found in zip(self.section_names, maps, strict=True):
            if not isinstance(found, Tensor) or found.ndim != 4:
                shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"{name}: its output has shape {shape}; allowed: N x C x H x W")
        return maps, seen[f"input of {self.classifier_name}"].flatten(1), logits

    def maps(self, images: Tensor) -> list[Tensor]:
        return self.whole(images)[0]

    def shapes(self, input_shape: Shape) -> tuple[list[torch.Size], int]:
        with recorded(self.backbone) as calls:
            found = super().shapes(input_shape)
        self.behind[input_shape] = {name: behind(calls, name) for name in self.section_names}
        return found

    def deepest(self) -> nn.Module:
        return nn.Sequential(self.backbone)

    def trunk(self, section: int, input_shape: Shape) -> nn.Module:
        if input_shape not in self.behind:
            self.shapes(input_shape)
        name = self.section_names[section]
        return Truncated(without(self.backbone, self.behind[input_shape][name]), name, self.as_map)


class Truncated(nn.Module):
    """Images N x C x H x W -> the map of a section of a backbone that has nothing behind it."""

    def __init__(self, backbone: nn.Module, section: str, as_map: AsMap) -> None:
        super().__init__()
        self.backbone, self.section, self.as_map = backbone, section, as_map
        self.training = backbone.training

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        module = self.backbone.get_submodule(self.section)
        hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            self.backbone(images)
        finally:
            hook.remove()
        return self.as_map(self.section, seen[0])


@dataclass
class Call:
    """One call of a module in a forward pass.

    started, ended: places in the order in which calls start and end.
    rows: the length of its first argument; output: what it gave, on the meta device.  Both None unless the first
    argument and the output are tensors.
    """

    name: str
    started: int
    ended: int = 0
    rows: int | None = None
    output: Tensor | None = None

    def shape(self) -> tuple[int | None, tuple[int, ...] | None]:
        return self.rows, None if self.output is None else tuple(self.output.shape)


@contextmanager
def recorded(backbone: nn.Module) -> Iterator[list[Call]]:
    """All calls of the backbone's modules inside, in the order in which they start."""
    calls: list[Call] = []
    running: list[Call] = []
    clock = iter(range(1 << 62))

    def start(name: str, module: nn.Module, inputs: tuple) -> None:
        calls.append(Call(name, next(clock)))
        running.append(calls[-1])

    def end(module: nn.Module, inputs: tuple, output: object) -> None:
        call = running.pop()
        call.ended = next(clock)
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim and isinstance(output, Tensor) and output.ndim:
            call.rows, call.output = len(inputs[0]), torch.empty_like(output, device="meta")

    hooks = []
    for name, module in backbone.named_modules():
        if name:
            hooks += [
                module.register_forward_pre_hook(partial(start, name)),
                module.register_forward_hook(end),
            ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def behind(calls: list[Call], section: str) -> dict[str, Call]:
    """The outermost modules that only start when the section has ended, by name; each with a call of it.

    Left out are modules that have run before as well (a ReLU that several layers share), those whose calls differ
    in shape, and those that do not make one tensor of another; what these contain is judged separately.
    """
    end = next(call.ended for call in calls if call.name == section)
    before = {call.name for call in calls if call.started < end}
    shapes: dict[str, set] = {}
    for call in calls:
        shapes.setdefault(call.name, set()).add(call.shape())
    found: dict[str, Call] = {}
    covered = end
    for call in calls:
        one_shape = call.output is not None and len(shapes[call.name]) == 1
        if call.started > covered and call.name not in before and one_shape:
            found[call.name] = call
            covered = call.ended
    return found


def without(backbone: nn.Module, calls: dict[str, Call]) -> nn.Module:
    """The backbone with these modules replaced by ones that hold no weights and give zeros of the same shape.

    All others are the backbone's own, not copies, except those that contain a replaced one.
    """
    new = {"": shallow_copy(backbone)}
    for name, call in calls.items():
        place, (*path, last) = "", name.split(".")
        for part in path:
            outer, place = new[place], f"{place}.{part}".lstrip(".")
            if place not in new:
                new[place] = outer._modules[part] = shallow_copy(outer.get_submodule(part))
        new[place]._modules[last] = zeros_for(new[place].get_submodule(last), call)
    return new[""]


def shallow_copy(module: nn.Module) -> nn.Module:
    """With the same weights and the same modules inside, which can be replaced one by one."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    return new


def zeros_for(module: nn.Module, call: Call) -> nn.Module:
    """A copy of a module that only makes zeros; code that asks for its class or settings still finds them."""
    new = copy.copy(module)
    new.__dict__.update(nn.Module().__dict__)  # no weights, no modules, no hooks
    new.training = module.training
    new.forward = partial(zeros, call=call)
    return new


def zeros(x: Tensor, *others: object, call: Call, **named: object) -> Tensor:
    """What a call would have given, all zero: of as many rows more or fewer as `x` has."""
    assert call.rows is not None  # see `behind`
    assert call.output is not None
    rows, *sides = call.output.shape
    return torch.zeros((rows * x.shape[0] // call.rows, *sides), dtype=call.output.dtype, device=x.device)
