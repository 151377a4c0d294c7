"""VGG with batch normalisation (Simonyan and Zisserman 2015), with one linear layer as its head."""

from torch import nn

from selfdistill.models.layers import convolution, initialise

# name: the class below, its arguments, and those of the exits: the width of a shallow exit's bottleneck, and whether
# its convolutions have biases (false where left out).  The card beside this file is about their forms and cuts.
NETWORKS = {
    "vgg19-bn": {
        "class": "VGG",
        "sections": (((64, 2),), ((128, 2),), ((256, 4),), ((512, 4), (512, 4))),
        "exit_width": 128,
    },
}


class VGG(nn.Module):
    """Sections of stages, each some 3x3 convolutions and max-pooling; a linear classifier.

    sections: a tuple of stages a section, each stage its width and how many convolutions it has.
    Pooling rounds sizes up, so that images smaller than 32 pixels pass five of them.
    """

    def __init__(self, *, channels: int, classes: int, sections: tuple[tuple[tuple[int, int], ...], ...]) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.sections = nn.ModuleList()
        for stages in sections:
            section = nn.Sequential()
            for width, count in stages:
                for _ in range(count):
                    section.append(convolution(channels, width, 3, bias=True))
                    channels = width
                section.append(nn.MaxPool2d(2, ceil_mode=True))
            self.sections.append(section)
        self.classifier = nn.Linear(channels, classes)
        initialise(self)
