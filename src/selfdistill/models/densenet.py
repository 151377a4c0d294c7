"""DenseNet-BC (Huang et al. 2017) in its form for small images: 3x3 stem, no max-pooling."""

import torch
from torch import Tensor, nn

from selfdistill.models.layers import initialise

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "densenet121": {"class": "DenseNet", "growth": 32, "blocks": (6, 12, 24, 16), "exit_width": 128},
}


def activated(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    """Batch normalisation, ReLU and a convolution, in this order."""
    return [
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
    ]


class DenseLayer(nn.Module):
    """Appends `growth` channels to its input: a 1x1 convolution to 4 times as many, then 3x3."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(*activated(inputs, 4 * growth, 1), *activated(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], dim=1)


class DenseNet(nn.Module):
    """One section a dense block; a transition, which halves channels and size, opens all but the first.

    blocks: the layers of each dense block.
    The last section ends with batch normalisation and ReLU.
    """

    def __init__(self, *, channels: int, classes: int, growth: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.sections = nn.ModuleList()
        for i, count in enumerate(blocks):
            section = nn.Sequential()
            if i:
                section.extend([*activated(width, width // 2, 1), nn.AvgPool2d(2)])
                width //= 2
            for _ in range(count):
                section.append(DenseLayer(width, growth))
                width += growth
            self.sections.append(section)
        section.extend([nn.BatchNorm2d(width), nn.ReLU()])
        self.classifier = nn.Linear(width, classes)
        # as torchvision's: with so few outputs a layer, their count would make each layer's output 4 times as
        # large in variance as its input until batch normalisation has its statistics
        initialise(self, "fan_in")
