"""MobileNetV2 (Sandler et al. 2018) in the form for small images that Tf-KD and DR-KD train."""

from functools import partial

from torch import Tensor, nn

from selfdistill.models import layers

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "mobilenetv2": {"class": "MobileNetV2", "exit_width": 128},
}


convolution = partial(layers.convolution, bias=True, activation=nn.ReLU6)

# of each stage: expansion, channels, blocks, the first one's stride (table 2 of the paper, except that
# the stage of 160 channels has none, and neither has the stem)
SECTIONS = (
    ((1, 16, 1, 1), (6, 24, 2, 2)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 1), (6, 320, 1, 1)),
)
LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the channels, 3x3 of each channel by itself, 1x1 without
    activation; added to the input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.residual = nn.Sequential(
            convolution(inputs, inner, 1),
            convolution(inner, inner, 3, stride, groups=inner),
            convolution(inner, outputs, 1, activation=None),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + x if self.adds else self.residual(x)


class MobileNetV2(nn.Module):
    """Sections of inverted residuals, the last with the convolution to 1,280 channels; a linear classifier.

    Weights start as PyTorch draws them, as in the public code.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        width = 32
        # the public code's: a 1x1 convolution padded by a pixel, so that 32 pixels become 34
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 1, padding=1), nn.BatchNorm2d(width), nn.ReLU6())
        self.sections = nn.ModuleList()
        for stages in SECTIONS:
            section = nn.Sequential()
            for expansion, outputs, count, stride in stages:
                for i in range(count):
                    section.append(InvertedResidual(width, outputs, 1 if i else stride, expansion))
                    width = outputs
            self.sections.append(section)
        section.append(convolution(width, LAST, 1))
        self.classifier = nn.Linear(LAST, classes)
