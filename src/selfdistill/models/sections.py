"""A backbone cut into sections, with a classifier after each where a method wants exits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Outputs:
    """What a network says of a batch, shallow to deep.

    logits: one N x K tensor an exit; a network without exits has the deepest alone.
    features: one N x D tensor an exit, what its linear classifier sees; D is the same at every exit.
    maps: one N x C x H x W tensor a section, its feature maps, exits or not.
    """

    logits: list[Tensor]
    features: list[Tensor]
    maps: list[Tensor]

    def float(self) -> "Outputs":
        """With half precisions as float32, in which losses are computed."""

        def whole(tensor: Tensor) -> Tensor:
            return tensor.float() if tensor.dtype.itemsize == 2 else tensor

        return Outputs(*([whole(t) for t in part] for part in (self.logits, self.features, self.maps)))

    def chunks(self, count: int) -> "list[Outputs]":
        """The outputs of `count` batches of one size that went through the network together."""
        if count == 1:
            return [self]
        parts = [[t.chunk(count) for t in part] for part in (self.logits, self.features, self.maps)]
        return [Outputs(*([t[i] for t in part] for part in parts)) for i in range(count)]


class Exit(nn.Module):
    """A shallow exit: a bottleneck that brings the map to the deepest one's shape, and a classifier.

    1x1 convolution to `width`, k x k of stride k, 1x1 to the deepest map's channels, each with batch
    normalisation and ReLU; then average pooling and a linear layer.  k is the ratio of the sizes, so
    that one form fits any input.  The shape of `ScalaNet` in the journal code of BYOT, which is the
    likeliest bottleneck of the conference paper.
    """

    def __init__(self, shape: torch.Size, deepest: torch.Size, width: int, bias: bool, classes: int) -> None:
        super().__init__()
        k = max(shape[-1] // deepest[-1], 1)
        layers = []
        for inputs, outputs, size in (
            (shape[1], width, 1),
            (width, width, k),
            (width, deepest[1], 1),
        ):
            convolution = nn.Conv2d(inputs, outputs, size, size, bias=bias)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(deepest[1], classes)


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
            shapes = self._map_shapes(input_shape)
            self.exits.extend(Exit(s, shapes[-1], exit_width, exit_bias, classes) for s in shapes[:-1])

    def _map_shapes(self, input_shape: tuple[int, int, int]) -> list[torch.Size]:
        """The shape of each section's map, found by a dry run that leaves the statistics alone."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            shapes = [m.shape for m in self.maps(torch.zeros(1, *input_shape))]
        self.train(was_training)
        return shapes

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

    def _feature(self, exit_index: int, feature_map: Tensor) -> Tensor:
        if exit_index < len(self.exits):
            feature_map = self.exits[exit_index].bottleneck(feature_map)
        return feature_map.mean(dim=(2, 3))

    def _classifier(self, exit_index: int) -> nn.Module:
        return self.exits[exit_index].classifier if exit_index < len(self.exits) else self.backbone.classifier

    def forward(self, images: Tensor) -> Outputs:
        """images: N x C x H x W floats."""
        maps = self.maps(images)
        features = [self._feature(i, m) for i, m in enumerate(maps[len(maps) - self.exit_count :])]
        logits = [self._classifier(i)(f) for i, f in enumerate(features)]
        return Outputs(logits, features, maps)

    def until(self, images: Tensor, exit_index: int) -> Tensor:
        """The logits of one exit, N x K, running nothing that lies behind it."""
        sections = len(self.backbone.sections) - self.exit_count + 1 + exit_index
        feature_map = self.maps(images, sections)[-1]
        return self._classifier(exit_index)(self._feature(exit_index, feature_map))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise inside from this seed, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
