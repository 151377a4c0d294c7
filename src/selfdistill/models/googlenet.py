"""GoogLeNet (Szegedy et al. 2015): its form for small images, with one 3x3 convolution as the stem, batch
normalisation, two 3x3 convolutions for each 5x5, and no auxiliary heads; and torchvision's for ImageNet."""

from functools import partial

import torch
from torch import Tensor, nn

from selfdistill.data.vision import import_torchvision
from selfdistill.models import layers

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "googlenet": {"class": "GoogLeNet", "exit_width": 128},
    "googlenet-imagenet": {"class": "TorchvisionGoogLeNet", "exit_width": 128},
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
                module = Inception(width, *branches)
                section.append(module)
                width = module.outputs
            self.sections.append(section)
        self.classifier = nn.Linear(width, classes)


class TorchvisionGoogLeNet(nn.Module):
    """torchvision's `googlenet` without its auxiliary heads, in the same three sections; its stem has stride 8.

    Weights start as torchvision draws them; its dropout stands before the linear layer of the classifier.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        form = {"weights": None, "aux_logits": False, "init_weights": True, "num_classes": classes}
        whole = import_torchvision().models.googlenet(**form)
        if channels != 3:
            whole.conv1.conv = nn.Conv2d(channels, whole.conv1.conv.out_channels, 7, 2, 3, bias=False)
            nn.init.trunc_normal_(whole.conv1.conv.weight, std=0.01, a=-2, b=2)  # as torchvision's others
        self.stem = nn.Sequential(whole.conv1, whole.maxpool1, whole.conv2, whole.conv3, whole.maxpool2)
        self.sections = nn.ModuleList(
            [
                nn.Sequential(whole.inception3a, whole.inception3b),
                nn.Sequential(
                    whole.maxpool3,
                    *(whole.inception4a, whole.inception4b, whole.inception4c, whole.inception4d, whole.inception4e),
                ),
                nn.Sequential(whole.maxpool4, whole.inception5a, whole.inception5b),
            ]
        )
        self.classifier = nn.Sequential(whole.dropout, whole.fc)
