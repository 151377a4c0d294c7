"""PyramidNet (Han et al. 2017): residual blocks that grow wider one after the other."""

import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.layers import initialise, pad_channels

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "pyramidnet101-240": {
        "class": "PyramidNet",
        "widening": 240,
        "blocks": (11, 11, 6, 5),
        "strides": (1, 2, 2, 1),
        "bottleneck": True,
        "exit_width": 128,
    },
    "pyramidnet110-270": {
        "class": "PyramidNet",
        "widening": 270,
        "blocks": (18, 18, 9, 9),
        "strides": (1, 2, 2, 1),
        "bottleneck": False,
        "exit_width": 128,
    },
}


class PyramidBlock(nn.Module):
    """Batch normalisation before the first and after every convolution, ReLU between them; the shortcut is
    average-pooled where the block has a stride, and padded with zeros.

    Two 3x3 convolutions of `width` channels, or a bottleneck that ends with 4 times as many.
    """

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        self.stride = stride
        # inputs, outputs, size, stride
        forms = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            forms = [(inputs, width, 1, 1), (width, width, 3, stride), (width, self.outputs, 1, 1)]
        self.residual = nn.Sequential(nn.BatchNorm2d(inputs))
        for i, (before, after, size, step) in enumerate(forms):
            self.residual.extend(
                [
                    *([nn.ReLU()] if i else []),
                    nn.Conv2d(before, after, size, step, size // 2, bias=False),
                    nn.BatchNorm2d(after),
                ]
            )

    def forward(self, x: Tensor) -> Tensor:
        # rounded up, as the convolution's size is
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.residual(x) + pad_channels(shortcut, self.outputs)


class PyramidNet(nn.Module):
    """A stem of 16 channels, sections of blocks whose width grows by `widening` in all, and a classifier.

    blocks, strides: of each section, its blocks and its first block's stride.
    The last section ends with batch normalisation and ReLU; the maps of the others no ReLU has passed.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        widening: int,
        blocks: tuple[int, ...],
        strides: tuple[int, ...],
        bottleneck: bool,
    ) -> None:
        super().__init__()
        inputs, width = 16, 16.0
        self.stem = nn.Sequential(nn.Conv2d(channels, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs))
        self.sections = nn.ModuleList()
        for count, stride in zip(blocks, strides, strict=True):
            section = nn.Sequential()
            for i in range(count):
                width += widening / sum(blocks)
                block = PyramidBlock(inputs, round(width), 1 if i else stride, bottleneck)
                section.append(block)
                inputs = block.outputs
            self.sections.append(section)
        section.extend([nn.BatchNorm2d(inputs), nn.ReLU()])
        self.classifier = nn.Linear(inputs, classes)
        initialise(self)
