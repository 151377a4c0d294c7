"""Residual networks with pre-activation (He et al. 2016b), wide ones (Zagoruyko and Komodakis 2016) among them."""

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.layers import initialise

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "wrn16-4": {
        "class": "PreActResNet",
        "stem_width": 16,
        "widths": (64, 128, 256, 256),
        "blocks": (2, 2, 1, 1),
        "strides": (1, 2, 2, 1),
        "last_activation": True,
        "exit_width": 128,
    },
    "wrn40-2": {
        "class": "PreActResNet",
        "stem_width": 16,
        "widths": (32, 64, 128, 128),
        "blocks": (6, 6, 3, 3),
        "strides": (1, 2, 2, 1),
        "last_activation": True,
        "exit_width": 64,
    },
    "wrn28-10": {
        "class": "PreActResNet",
        "stem_width": 16,
        "widths": (160, 320, 640, 640),
        "blocks": (4, 4, 2, 2),
        "strides": (1, 2, 2, 1),
        "last_activation": True,
        "exit_width": 128,
    },
    "wrn20-8": {
        "class": "PreActResNet",
        "stem_width": 16,
        "widths": (128, 256, 512, 512),
        "blocks": (3, 3, 2, 1),
        "strides": (1, 2, 2, 1),
        "last_activation": True,
        "exit_width": 128,
    },
    "wrn44-8": {
        "class": "PreActResNet",
        "stem_width": 16,
        "widths": (128, 256, 512, 512),
        "blocks": (7, 7, 4, 3),
        "strides": (1, 2, 2, 1),
        "last_activation": True,
        "exit_width": 128,
    },
    "preact-resnet18": {
        "class": "PreActResNet",
        "widths": (64, 128, 256, 512),
        "blocks": (2, 2, 2, 2),
        "strides": (1, 2, 2, 2),
        "exit_width": 128,
        "stem_width": 64,
        "last_activation": False,
    },
}


class PreActBlock(nn.Module):
    """Twice batch normalisation, ReLU and a 3x3 convolution; the shortcut is x itself, or where the shape
    changes a 1x1 convolution of the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


class PreActResNet(nn.Module):
    """A stem, sections of pre-activation blocks, and a linear classifier on the average-pooled last map.

    widths, blocks, strides: of each section, the channels of its map, its blocks, its first block's stride.
    last_activation: batch normalisation and ReLU after the last block; without, they follow the stem.
    Except after such a last block, a section's map is a sum that no ReLU has passed.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        stem_width: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        strides: tuple[int, ...],
        last_activation: bool,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, stem_width, 3, 1, 1, bias=False))
        inputs = (stem_width, *widths)
        sections = [
            nn.Sequential(
                PreActBlock(inputs[i], width, strides[i]),
                *(PreActBlock(width, width, 1) for _ in range(blocks[i] - 1)),
            )
            for i, width in enumerate(widths)
        ]
        self.sections = nn.ModuleList(sections)
        activated, width = (sections[-1], widths[-1]) if last_activation else (self.stem, stem_width)
        activated.extend([nn.BatchNorm2d(width), nn.ReLU()])
        self.classifier = nn.Linear(widths[-1], classes)
        initialise(self)
