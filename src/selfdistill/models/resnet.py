"""Residual networks (He et al. 2016; ResNeXt: Xie et al. 2017), by default in their form for small images:
3x3 stem, no max-pooling."""

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.layers import convolution, initialise, pad_channels

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "resnet10-slim": {
        "class": "ResNet",
        "widths": (16, 32, 48, 64),
        "blocks": (1, 1, 1, 1),
        "strides": (1, 2, 2, 1),
        "exit_width": 32,
    },
    "resnet18": {
        "class": "ResNet",
        "widths": (64, 128, 256, 512),
        "blocks": (2, 2, 2, 2),
        "strides": (1, 2, 2, 2),
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet50": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 4, 6, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": False,
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet101": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 4, 23, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": False,
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet152": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 8, 36, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": False,
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet20": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (3, 3, 3),
        "strides": (1, 2, 2),
        "padded": False,
        "exit_width": 32,
    },
    "resnet32": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (5, 5, 5),
        "strides": (1, 2, 2),
        "padded": False,
        "exit_width": 32,
    },
    "resnet44": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (7, 7, 7),
        "strides": (1, 2, 2),
        "padded": False,
        "exit_width": 32,
    },
    "resnet56": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (9, 9, 9),
        "strides": (1, 2, 2),
        "padded": False,
        "exit_width": 32,
    },
    "resnet110": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (18, 18, 18),
        "strides": (1, 2, 2),
        "padded": False,
        "exit_width": 32,
    },
    "resnet20-a": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (3, 3, 3),
        "strides": (1, 2, 2),
        "padded": True,
        "exit_width": 32,
    },
    "resnet32-a": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (5, 5, 5),
        "strides": (1, 2, 2),
        "padded": True,
        "exit_width": 32,
    },
    "resnet44-a": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (7, 7, 7),
        "strides": (1, 2, 2),
        "padded": True,
        "exit_width": 32,
    },
    "resnet56-a": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (9, 9, 9),
        "strides": (1, 2, 2),
        "padded": True,
        "exit_width": 32,
    },
    "resnet110-a": {
        "class": "ResNet",
        "widths": (16, 32, 64),
        "blocks": (18, 18, 18),
        "strides": (1, 2, 2),
        "padded": True,
        "exit_width": 32,
    },
    "resnext29-8x64d": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 1024),
        "blocks": (3, 3, 2, 1),
        "strides": (1, 2, 2, 1),
        "stem_width": 64,
        "inner": (512, 1024, 2048, 2048),
        "groups": 8,
        "exit_width": 128,
    },
    "resnext29-4x64d": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 1024),
        "blocks": (3, 3, 2, 1),
        "strides": (1, 2, 2, 1),
        "stem_width": 64,
        "inner": (256, 512, 1024, 1024),
        "groups": 4,
        "exit_width": 128,
    },
    "resnet18-imagenet": {
        "class": "ResNet",
        "widths": (64, 128, 256, 512),
        "blocks": (2, 2, 2, 2),
        "strides": (1, 2, 2, 2),
        "exit_width": 128,
        "imagenet": True,
        "exit_bias": True,
    },
    "resnet50-imagenet": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 4, 6, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": True,
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet101-imagenet": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 4, 23, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": True,
        "exit_width": 128,
        "exit_bias": True,
    },
    "resnet152-imagenet": {
        "class": "ResNet",
        "widths": (256, 512, 1024, 2048),
        "blocks": (3, 8, 36, 3),
        "strides": (1, 2, 2, 2),
        "stem_width": 64,
        "inner": (64, 128, 256, 512),
        "imagenet": True,
        "exit_width": 128,
        "exit_bias": True,
    },
}


class PaddedShortcut(nn.Module):
    """He et al.'s option A: every stride-th pixel, and zeros for the channels that are new."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs, self.stride = outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        return pad_channels(x[:, :, :: self.stride, :: self.stride], self.outputs)


def shortcut(inputs: int, outputs: int, stride: int, padded: bool = False) -> nn.Module:
    """The identity, or where the shape changes a 1x1 convolution (option B) or `PaddedShortcut`."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return PaddedShortcut(outputs, stride) if padded else convolution(inputs, outputs, 1, stride, activation=None)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, padded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride, padded)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 convolution to `inner` channels, 3x3 in groups and with the stride, 1x1 to the outputs; a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, inner: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(inputs, inner, 1),
            convolution(inner, inner, 3, stride, groups=groups),
            convolution(inner, outputs, 1, activation=None),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, sections of residual blocks, and a linear classifier on the average-pooled last map.

    widths, blocks, strides: of each section, the channels of its map, its blocks, its first block's stride.
    stem_width: by default the first section's.
    inner: the 3x3 convolutions' width in each section's bottlenecks, in `groups`; None for basic blocks.
    padded: option A for the shortcuts of basic blocks, for B.
    imagenet: a stem of 7x7 with stride 2 and max-pooling, for images of some 224 pixels.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        strides: tuple[int, ...],
        stem_width: int | None = None,
        inner: tuple[int, ...] | None = None,
        groups: int = 1,
        padded: bool = False,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        stem_width = stem_width or widths[0]
        self.stem = convolution(channels, stem_width, 7 if imagenet else 3, 2 if imagenet else 1)
        if imagenet:
            self.stem.append(nn.MaxPool2d(3, 2, 1))

        def block(section: int, inputs: int, stride: int) -> nn.Module:
            if inner is None:
                return BasicBlock(inputs, widths[section], stride, padded=padded)
            return Bottleneck(inputs, widths[section], stride, inner=inner[section], groups=groups)

        inputs = (stem_width, *widths)
        self.sections = nn.ModuleList(
            nn.Sequential(block(i, inputs[i], strides[i]), *(block(i, width, 1) for _ in range(blocks[i] - 1)))
            for i, width in enumerate(widths)
        )
        self.classifier = nn.Linear(widths[-1], classes)
        initialise(self)
