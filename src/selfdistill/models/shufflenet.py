"""ShuffleNetV2 1x (Ma et al. 2018): the form for small images that Tf-KD and DR-KD train, and torchvision's for
ImageNet."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.data.vision import import_torchvision
from selfdistill.models import layers

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "shufflenetv2": {"class": "ShuffleNetV2", "exit_width": 128},
    "shufflenetv2-imagenet": {"class": "TorchvisionShuffleNetV2", "exit_width": 128},
}


convolution = partial(layers.convolution, bias=True)

# channels and units of each stage (table 5 of the paper)
SECTIONS = ((116, 4), (232, 8), (464, 4))
LAST = 1024


class ShuffleUnit(nn.Module):
    """Two branches of half the outputs each, shuffled.

    With stride 2 both see the whole input; otherwise one half of the channels passes unchanged.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.other = None
        if stride == 2:
            self.other = nn.Sequential(
                convolution(inputs, inputs, 3, stride, groups=inputs, activation=None),
                convolution(inputs, half, 1),
            )
        inner = inputs if stride == 2 else half
        self.branch = nn.Sequential(
            convolution(inner, inner, 1),
            convolution(inner, inner, 3, stride, groups=inner, activation=None),
            convolution(inner, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1) if self.other is None else (self.other(x), x)
        return F.channel_shuffle(torch.cat([kept, self.branch(changed)], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """One section a stage, the last with the convolution to 1,024 channels; a linear classifier.

    Weights start as PyTorch draws them, as in the public code.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        width = 24
        self.stem = convolution(channels, width, 3, activation=None)
        self.sections = nn.ModuleList()
        for outputs, count in SECTIONS:
            units = (ShuffleUnit(outputs, outputs, 1) for _ in range(count - 1))
            section = nn.Sequential(ShuffleUnit(width, outputs, 2), *units)
            self.sections.append(section)
            width = outputs
        section.append(convolution(width, LAST, 1))
        self.classifier = nn.Linear(LAST, classes)


class TorchvisionShuffleNetV2(nn.Module):
    """torchvision's `shufflenet_v2_x1_0` in the same three sections, its stem of stride 4 before them.

    Weights start as torchvision draws them.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        whole = import_torchvision().models.shufflenet_v2_x1_0(weights=None, num_classes=classes)
        if channels != 3:
            whole.conv1[0] = nn.Conv2d(channels, whole.conv1[0].out_channels, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(whole.conv1, whole.maxpool)
        self.sections = nn.ModuleList([whole.stage2, whole.stage3, nn.Sequential(whole.stage4, whole.conv5)])
        self.classifier = whole.fc
