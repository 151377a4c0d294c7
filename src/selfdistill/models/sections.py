"""A backbone cut into sections, with a classifier after each where a method wants exits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]  # of an image: C, H, W


class Floats(Sequence[Tensor]):
    """Tensors, those in half precision as float32; each is cast when it is first read.

    A method reads few of a network's maps: casting all of a ResNet-18's, batches of 128, moves 190 MB a step.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        tensor = self.tensors[place]
        if tensor.dtype.itemsize == 2:
            self.tensors[place] = tensor = tensor.float()
        return tensor


@dataclass
class Outputs:
    """What a network says of a batch, shallow to deep.

    logits: one N x K tensor an exit; a network without exits has the deepest alone.
    features: one N x D tensor an exit, what its linear classifier sees; D is the same at every exit.
    maps: one N x C x H x W tensor a section, its feature maps, exits or not.
    """

    logits: Sequence[Tensor]
    features: Sequence[Tensor]
    maps: Sequence[Tensor]

    @property
    def classes(self) -> int:
        """K; the logits are not read for it, which might cast them for nothing."""
        logits = self.logits.tensors if isinstance(self.logits, Floats) else self.logits
        return logits[-1].shape[1]

    def float(self) -> "Outputs":
        """With half precisions as float32, in which losses are computed; cast on reading."""
        return Outputs(Floats(self.logits), Floats(self.features), Floats(self.maps))

    def split(self, sizes: list[int]) -> "list[Outputs]":
        """The outputs of batches of these sizes that went through the network together."""
        if len(sizes) == 1:
            return [self]
        parts = [[t.split(sizes) for t in part] for part in (self.logits, self.features, self.maps)]
        return [Outputs(*([t[i] for t in part] for part in parts)) for i in range(len(sizes))]


class Exit(nn.Module):
    """A shallow exit: a bottleneck that brings the map to the deepest one's shape, and a classifier.

    1x1 convolution to `width`, k x k of stride k, 1x1 to `features` channels, as many as the deepest
    classifier sees, each with batch normalisation and ReLU; then average pooling and a linear layer.
    k is the ratio of the sizes, of heights and of widths, so that one form fits any input.  The shape of
    `ScalaNet` in the journal code of BYOT, which is the likeliest bottleneck of the conference paper.
    """

    def __init__(
        self, shape: torch.Size, deepest: torch.Size, features: int, width: int, bias: bool, classes: int
    ) -> None:
        super().__init__()
        k = max(shape[2] // deepest[2], 1), max(shape[3] // deepest[3], 1)
        layers: list[nn.Module] = []
        for inputs, outputs, size in (
            (shape[1], width, (1, 1)),
            (width, width, k),
            (width, features, (1, 1)),
        ):
            convolution = nn.Conv2d(inputs, outputs, size, size, bias=bias)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)


class Pooled(nn.Module):
    """N x C x H x W -> N x C, the mean of each map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class SectionedNetwork(nn.Module):
    """A backbone with `stem`, `sections` and `classifier`, and one exit a shallow section if wanted.

    exit_width: the width of the exits' bottlenecks; None for no exits but the deepest.
    exit_bias: whether their convolutions have biases, which batch normalisation makes superfluous.
    The deepest exit is the backbone's own classifier, so that the network without its shallow exits
    is the plain backbone.
    """

    backbone: Any  # a module with `stem`, `sections` and `classifier`
    classifier_name = "classifier"  # in the backbone

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: Shape,
        classes: int,
        exit_width: int | None,
        exit_bias: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.input_shape = backbone, input_shape
        self.exits = nn.ModuleList()
        if exit_width is not None:
            shapes, features = self.shapes(input_shape)
            self.exits.extend(Exit(s, shapes[-1], features, exit_width, exit_bias, classes) for s in shapes[:-1])

    def shapes(self, input_shape: Shape) -> tuple[list[torch.Size], int]:
        """The shape of each section's map of one image, and the width of what the backbone's classifier sees.

        Found by a dry run that leaves the statistics alone."""
        with evaluating(self):
            device = next(self.backbone.parameters()).device
            maps, feature, _ = self.whole(torch.zeros(1, *input_shape, device=device))
        return [m.shape for m in maps], feature.shape[1]

    def check(self, classes: int) -> None:
        """Try a black image, because the backbone is not ours.  Raises ValueError for outputs that do not fit."""
        with evaluating(self):
            x = self.backbone.stem(torch.zeros(1, *self.input_shape, device=next(self.parameters()).device))
            for i, section in enumerate(self.backbone.sections):
                x = section(x)
                if not isinstance(x, Tensor) or x.ndim != 4:
                    found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                    raise ValueError(f"sections[{i}] gives {found}; allowed: a map N x C x H x W")
            logits = self.backbone.classifier(x.mean(dim=(2, 3)))
        if logits.shape != (1, classes):
            raise ValueError(f"classifier gives {list(logits.shape)}; allowed: logits [1, {classes}]")

    @property
    def section_count(self) -> int:
        return len(self.backbone.sections)

    @property
    def exit_count(self) -> int:
        return len(self.exits) + 1

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of all sections."""
        x, found = self.backbone.stem(images), []
        for section in self.backbone.sections:
            x = section(x)
            found.append(x)
        return found

    def whole(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Every section's map, what the backbone's classifier sees, N x D, and its logits, N x K."""
        maps = self.maps(images)
        feature = maps[-1].mean(dim=(2, 3))
        return maps, feature, self.backbone.classifier(feature)

    def forward(self, images: Tensor) -> Outputs:
        """images: N x C x H x W floats."""
        maps, deepest_feature, deepest_logits = self.whole(images)
        exits: list[Any] = list(self.exits)
        features = [e.bottleneck(m).mean(dim=(2, 3)) for e, m in zip(exits, maps, strict=False)]
        logits = [e.classifier(f) for e, f in zip(exits, features, strict=True)]
        return Outputs([*logits, deepest_logits], [*features, deepest_feature], maps)

    def until(self, images: Tensor, exit_index: int) -> Tensor:
        """The logits of one exit, N x K, running nothing that lies behind it.

        exit_index: 0 for the shallowest to `exit_count` - 1; raises IndexError for another.
        """
        channels, height, width = images.shape[1:]
        return self.exit_module(exit_index, (channels, height, width))(images)

    def exit_module(self, exit_index: int, input_shape: Shape | None = None) -> nn.Module:
        """One exit as a module of its own: images N x C x H x W -> logits N x K, without what lies behind it.

        It shares the network's weights, and can be exported by `torch.export.export` or `torch.onnx.export`; call
        `eval()` on the network first.
        exit_index: as of `until`; input_shape: C, H, W of the images where they are not those it was built for.
        """
        if not 0 <= exit_index < self.exit_count:
            raise IndexError(
                f"exit {exit_index}: this network has {self.exit_count}; allowed: 0 to {self.exit_count - 1}"
            )
        if exit_index == len(self.exits):
            module = self.deepest()
        else:
            shallow: Any = self.exits[exit_index]
            trunk = self.trunk(exit_index, input_shape or self.input_shape)
            module = nn.Sequential(trunk, shallow.bottleneck, Pooled(), shallow.classifier)
        module.training = self.training
        return module

    def deepest(self) -> nn.Module:
        """The network without shallow exits: images -> logits."""
        return nn.Sequential(self.backbone.stem, *self.backbone.sections, Pooled(), self.backbone.classifier)

    def trunk(self, section: int, input_shape: Shape) -> nn.Module:
        """Images of this shape -> the map of a section, counted from 0, without what lies behind it."""
        return nn.Sequential(self.backbone.stem, *self.backbone.sections[: section + 1])


def lacking(backbone: object) -> str | None:
    """What a module lacks to be the backbone of a `SectionedNetwork`."""
    if not isinstance(backbone, nn.Module):
        return f"{type(backbone).__name__} is no torch.nn.Module"
    for part in ("stem", "sections", "classifier"):
        if not isinstance(getattr(backbone, part, None), nn.Module):
            return f"no {part}" if not hasattr(backbone, part) else f"{part} is no torch.nn.Module"
    if not isinstance(backbone.sections, nn.ModuleList | nn.Sequential) or not len(backbone.sections):
        return "sections is no torch.nn.ModuleList of at least one section"
    return None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients inside; afterwards every module is in its former mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise inside from this seed; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
