"""A backbone cut into sections, with a classifier after each where a method wants exits."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn


class Floats(Sequence[Tensor]):
    """Tensors, those in half precision as float32; each is cast when it is first read, and never if nobody reads it.

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
        k = tuple(max(own // last, 1) for own, last in zip(shape[2:], deepest[2:], strict=True))
        layers = []
        for inputs, outputs, size in (
            (shape[1], width, 1),
            (width, width, k),
            (width, features, 1),
        ):
            convolution = nn.Conv2d(inputs, outputs, size, size, bias=bias)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)


class SectionedNetwork(nn.Module):
    """A backbone with `stem`, `sections` and `classifier`, and one exit a shallow section if wanted.

    exit_width: the width of the exits' bottlenecks; None for no exits but the deepest.
    exit_bias: whether their convolutions have biases, which batch normalisation makes superfluous.
    The deepest exit is the backbone's own classifier, so that the network without its shallow exits
    is the plain backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        exit_width: int | None,
        exit_bias: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.exits = nn.ModuleList()
        if exit_width is not None:
            shapes, features = self._shapes(input_shape)
            self.exits.extend(Exit(s, shapes[-1], features, exit_width, exit_bias, classes) for s in shapes[:-1])

    def _shapes(self, input_shape: tuple[int, int, int]) -> tuple[list[torch.Size], int]:
        """The shape of each section's map, and the width of what the backbone's classifier sees.

        Found by a dry run that leaves the statistics alone."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            device = next(self.backbone.parameters()).device
            maps, feature, _ = self.whole(torch.zeros(1, *input_shape, device=device))
        self.train(was_training)
        return [m.shape for m in maps], feature.shape[1]

    @property
    def section_count(self) -> int:
        return len(self.backbone.sections)

    @property
    def exit_count(self) -> int:
        return len(self.exits) + 1

    def maps(self, images: Tensor, sections: int | None = None) -> list[Tensor]:
        """The feature maps of the first `sections` sections, or of all."""
        x, found = self.backbone.stem(images), []
        for section in self.backbone.sections[:sections]:
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
        features = [e.bottleneck(m).mean(dim=(2, 3)) for e, m in zip(self.exits, maps, strict=False)]
        logits = [e.classifier(f) for e, f in zip(self.exits, features, strict=True)]
        return Outputs([*logits, deepest_logits], [*features, deepest_feature], maps)

    def until(self, images: Tensor, exit_index: int) -> Tensor:
        """The logits of one exit, N x K, running nothing that lies behind it.

        exit_index: 0 for the shallowest to `exit_count` - 1; raises IndexError for another.
        """
        if not 0 <= exit_index < self.exit_count:
            raise IndexError(
                f"exit {exit_index}: this network has {self.exit_count}; allowed: 0 to {self.exit_count - 1}"
            )
        if exit_index == len(self.exits):
            return self.whole(images)[2]
        chosen = self.exits[exit_index]
        return chosen.classifier(chosen.bottleneck(self.maps(images, exit_index + 1)[-1]).mean(dim=(2, 3)))


AsMap = Callable[[str, Tensor], Tensor]


def unchanged(name: str, output: Tensor) -> Tensor:
    return output


class CutNetwork(SectionedNetwork):
    """Any module as a backbone, cut after some of its modules, which are found by name.

    The backbone runs as it is, and hooks look at what passes; so its own weights are trained, and what
    it does between its last section and its classifier stays its own affair.
    """

    def __init__(self, backbone: nn.Module, sections: list[str], classifier: str, as_map: "AsMap", **arguments) -> None:
        named = dict(backbone.named_modules())
        for name in (*sections, classifier):
            if name not in named:
                close = difflib.get_close_matches(name, [n for n in named if n], n=3)
                raise ValueError(f"no module {name!r} in {type(backbone).__name__}; the nearest: {', '.join(close)}")
        self.section_names, self.classifier_name, self.as_map = list(sections), classifier, as_map
        super().__init__(backbone, **arguments)

    @property
    def section_count(self) -> int:
        return len(self.section_names)

    def maps(self, images: Tensor, sections: int | None = None) -> list[Tensor]:
        maps, _, _ = self._run(images, self.section_names[:sections], stop=True)
        return maps

    def whole(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        return self._run(images, self.section_names, stop=False)

    def _run(
        self, images: Tensor, sections: list[str], stop: bool
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Run the backbone, or with `stop` only until the last of `sections` has been computed."""
        seen: dict[str, Tensor] = {}

        def look(name: str):
            def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
                seen[name] = output
                seen[f"input of {name}"] = inputs[0]
                if stop and name == sections[-1]:
                    raise _Enough

            return hook

        watched = sections if stop else [*sections, self.classifier_name]
        hooks = [self.backbone.get_submodule(name).register_forward_hook(look(name)) for name in watched]
        logits = None
        try:
            logits = self.backbone(images)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for name in watched:
            if name not in seen:
                raise ValueError(f"{name}: this module does not run in the backbone's forward pass")
        maps = [self.as_map(name, seen[name]) for name in sections]
        for name, found in zip(sections, maps, strict=True):
            if not isinstance(found, Tensor) or found.ndim != 4:
                shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"{name}: its output has shape {shape}; allowed: N x C x H x W")
        feature = seen.get(f"input of {self.classifier_name}")
        return maps, feature.flatten(1) if feature is not None else None, logits


class _Enough(Exception):
    """What was wanted of a forward pass has been computed."""


def cut(
    backbone: nn.Module,
    sections: list[str],
    *,
    classifier: str,
    input_shape: tuple[int, int, int],
    exit_width: int | None = None,
    as_map: AsMap = unchanged,
) -> CutNetwork:
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
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    if layer is not None and not (isinstance(layer, nn.Linear) or pointwise):
        raise ValueError(
            f"{classifier}: {type(layer).__name__} is no classifier; allowed: the last nn.Linear or 1x1 nn.Conv2d"
        )
    classes = layer.out_channels if pointwise else layer.out_features if layer is not None else 0
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise inside from this seed, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
