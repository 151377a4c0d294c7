"""Networks cut into sections, by name.  Nothing here imports torch until a network is built."""

from importlib import import_module

# name: (module, class, arguments).  The sections are what the exits of BYOT and the feature losses
# of SD see; `exit_width` is the width of the bottleneck in a shallow exit.
NETWORKS = {
    # 10 layers, four sections of one basic block, for images of 8 to 32 pixels on a CPU
    "resnet10-slim": (
        "resnet",
        "ResNet",
        {"widths": (16, 32, 48, 64), "blocks": (1, 1, 1, 1), "strides": (1, 2, 2, 1), "exit_width": 32},
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
    exit_width = arguments.pop("exit_width")
    factory = getattr(import_module(f"{__name__}.{module}"), backbone)
    sections = import_module(f"{__name__}.sections")
    with sections.seeded(seed):
        trunk = factory(channels=channels, classes=classes, **arguments)
    with sections.seeded(seed + 1):
        return sections.SectionedNetwork(
            trunk, input_shape=(channels, *size), classes=classes, exit_width=exit_width if exits else None
        )
