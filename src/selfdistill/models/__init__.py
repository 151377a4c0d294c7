"""Networks cut into sections, by name.  Nothing here imports torch until a network is built."""

from importlib import import_module

# name: (module, class, arguments).  The sections are what the exits of BYOT and the feature losses
# of SD see; `exit_width` is the width of the bottleneck in a shallow exit, `exit_bias` (false where it is
# left out) whether its convolutions have biases.
NETWORKS = {
    # 10 layers, four sections of one basic block, for images of 8 to 32 pixels on a CPU
    "resnet10-slim": (
        "resnet",
        "ResNet",
        {"widths": (16, 32, 48, 64), "blocks": (1, 1, 1, 1), "strides": (1, 2, 2, 1), "exit_width": 32},
    ),
    # the CIFAR form of ResNet-18, cut before every change of width; its exits are to the letter those of
    # BYOT's journal code, superfluous biases included, so that the counts are that code's
    "resnet18": (
        "resnet",
        "ResNet",
        {
            "widths": (64, 128, 256, 512),
            "blocks": (2, 2, 2, 2),
            "strides": (1, 2, 2, 2),
            "exit_width": 128,
            "exit_bias": True,
        },
    ),
    # He et al.'s own network for CIFAR, 6n + 2 layers with n = 3, with 1x1 convolutions in the shortcuts
    # (option B; theirs pads with zeros).  Exits half the deepest width: they then add a seventh to the
    # parameters, as resnet18's do (a sixth), where a quarter, 16, would add only a thirteenth.
    "resnet20": (
        "resnet",
        "ResNet",
        {"widths": (16, 32, 64), "blocks": (3, 3, 3), "strides": (1, 2, 2), "exit_width": 32},
    ),
}


def build(name: str, *, channels: int, classes: int, size: tuple[int, int], exits: bool, seed: int):
    """A freshly initialised `SectionedNetwork`.

    channels, size: of the images, C and (H, W); exits: a classifier after every section.
    The backbone and the exits draw from generators of their own, so that networks of one seed start
    from the same backbone whether they have exits or not.
    """
    module, backbone, arguments = NETWORKS[name]
    arguments = dict(arguments)
    exit_width, exit_bias = arguments.pop("exit_width"), arguments.pop("exit_bias", False)
    factory = getattr(import_module(f"{__name__}.{module}"), backbone)
    sections = import_module(f"{__name__}.sections")
    with sections.seeded(seed):
        trunk = factory(channels=channels, classes=classes, **arguments)
    with sections.seeded(seed + 1):
        return sections.SectionedNetwork(
            trunk,
            input_shape=(channels, *size),
            classes=classes,
            exit_width=exit_width if exits else None,
            exit_bias=exit_bias,
        )
