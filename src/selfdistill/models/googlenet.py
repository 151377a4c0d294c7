"""GoogLeNet (Szegedy et al. 2015) in its form for small images: one 3x3 convolution as the stem, batch
normalisation, two 3x3 convolutions for each 5x5, and no auxiliary heads."""

from functools import partial

import torch
from torch import Tensor, nn

from selfdistill.models import layers

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "googlenet": {"class": "GoogLeNet", "exit_width": 128},
}


convolution = partial(layers.convolution, bias=True)

# of each inception module: the 1x1 branch; the 3x3 branch's reduction and width; the same of the 5x5
# branch; the pooling branch (table 1 of the paper)
SECTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches side by side, their channels one after the other."""

    def __init__(self, inputs: int, one: int, reduced3: int, three: int, reduced5: int, five: int, pooled: int) -> None:
        super().__init__()
        self.outputs = one + three + five + pooled
        self.branches = nn.ModuleList(
            [
                convolution(inputs, one, 1),
                nn.Sequential(convolution(inputs, reduced3, 1), convolution(reduced3, three, 3)),
                nn.Sequential(
                    convolution(inputs, reduced5, 1), convolution(reduced5, five, 3), convolution(five, five, 3)
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(inputs, pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class GoogLeNet(nn.Module):
    """Sections of inception modules, all but the first opened by max-pooling, and a linear classifier.

    Weights start as PyTorch draws them, as in the public code.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        width = 192
        self.stem = convolution(channels, width, 3)
        self.sections = nn.ModuleList()
        for i, modules in enumerate(SECTIONS):
            section = nn.Sequential(*([nn.MaxPool2d(3, 2, 1)] if i else []))
            for branches in modules:
                section.append(Inception(width, *branches))
                width = section[-1].outputs
            self.sections.append(section)
        self.classifier = nn.Linear(width, classes)
