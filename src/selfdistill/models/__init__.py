"""Networks cut into sections, by name.  Nothing here imports torch until a network is built."""

from importlib import import_module

# what the residual networks of 18 layers have in common
EIGHTEEN = {"widths": (64, 128, 256, 512), "blocks": (2, 2, 2, 2), "strides": (1, 2, 2, 2), "exit_width": 128}


def bottlenecks(*blocks: int, imagenet: bool = False) -> tuple[str, str, dict]:
    """ResNet-50 and deeper.  Exits as those of resnet18, biases included: of fixed width, whatever the depth."""
    return (
        "resnet",
        "ResNet",
        {
            "widths": (256, 512, 1024, 2048),
            "blocks": blocks,
            "strides": (1, 2, 2, 2),
            "stem_width": 64,
            "inner": (64, 128, 256, 512),
            "imagenet": imagenet,
            "exit_width": 128,
            "exit_bias": True,
        },
    )


def resnet_of_three_stages(n: int, padded: bool = False) -> tuple[str, str, dict]:
    """He et al.'s own network for CIFAR, 6n + 2 layers.  Exits half the deepest width: they then add a seventh
    to the parameters of resnet20, as resnet18's do (a sixth), where a quarter, 16, would add only a thirteenth.

    padded: their shortcuts (option A, zeros for new channels); else 1x1 convolutions (option B).
    """
    return (
        "resnet",
        "ResNet",
        {"widths": (16, 32, 64), "blocks": (n, n, n), "strides": (1, 2, 2), "padded": padded, "exit_width": 32},
    )


def halved(n: int) -> tuple[int, int, int, int]:
    """The blocks of four sections that are three stages of n, the last of which is cut in half.

    BYOT reports four classifiers of every network.
    """
    return (n, n, n - n // 2, n // 2)


def resnext29(cardinality: int) -> tuple[str, str, dict]:
    """Three stages of three bottlenecks, `cardinality` groups of 64 channels wide in the first."""
    return (
        "resnet",
        "ResNet",
        {
            "widths": (256, 512, 1024, 1024),
            "blocks": halved(3),
            "strides": (1, 2, 2, 1),
            "stem_width": 64,
            "inner": tuple(64 * cardinality * scale for scale in (1, 2, 4, 4)),
            "groups": cardinality,
            "exit_width": 128,
        },
    )


def wide_resnet(n: int, widening: int) -> tuple[str, str, dict]:
    """Zagoruyko and Komodakis' network: three stages of n blocks, 6n + 4 layers."""
    return (
        "preact_resnet",
        "PreActResNet",
        {
            "stem_width": 16,
            "widths": tuple(widening * width for width in (16, 32, 64, 64)),
            "blocks": halved(n),
            "strides": (1, 2, 2, 1),
            "last_activation": True,
            "exit_width": min(128, 32 * widening),
        },
    )


# name: (module, class, arguments).  The sections are what the exits of BYOT and the feature losses
# of SD see; `exit_width` is the width of the bottleneck in a shallow exit, 128 or, where that is less, half
# the deepest map's channels; `exit_bias` (false where it is left out) whether its convolutions have biases.
# docs/networks.md is the card of each: form, cut, parameters and multiply-adds.
NETWORKS = {
    # 10 layers, four sections of one basic block, for images of 8 to 32 pixels on a CPU
    "resnet10-slim": (
        "resnet",
        "ResNet",
        {"widths": (16, 32, 48, 64), "blocks": (1, 1, 1, 1), "strides": (1, 2, 2, 1), "exit_width": 32},
    ),
    # the CIFAR form of ResNet-18, cut before every change of width; its exits are to the letter those of
    # BYOT's journal code, superfluous biases included, so that the counts are that code's
    "resnet18": ("resnet", "ResNet", {**EIGHTEEN, "exit_bias": True}),
    "resnet50": bottlenecks(3, 4, 6, 3),
    "resnet101": bottlenecks(3, 4, 23, 3),
    "resnet152": bottlenecks(3, 8, 36, 3),
    "resnet20": resnet_of_three_stages(3),
    "resnet32": resnet_of_three_stages(5),
    "resnet110": resnet_of_three_stages(18),
    "resnet20-a": resnet_of_three_stages(3, padded=True),
    "resnet32-a": resnet_of_three_stages(5, padded=True),
    "resnet110-a": resnet_of_three_stages(18, padded=True),
    # cut after the first three of five stages
    "vgg19-bn": (
        "vgg",
        "VGG",
        {"sections": (((64, 2),), ((128, 2),), ((256, 4),), ((512, 4), (512, 4))), "exit_width": 128},
    ),
    "resnext29-8x64d": resnext29(8),
    "resnext29-4x64d": resnext29(4),
    "wrn16-4": wide_resnet(2, 4),
    "wrn40-2": wide_resnet(6, 2),
    "wrn28-10": wide_resnet(4, 10),
    # BYOT's names for what have 6n + 4 = 22 and 46 layers; see the card
    "wrn20-8": wide_resnet(3, 8),
    "wrn44-8": wide_resnet(7, 8),
    "pyramidnet101-240": (
        "pyramidnet",
        "PyramidNet",
        {"widening": 240, "blocks": halved(11), "strides": (1, 2, 2, 1), "bottleneck": True, "exit_width": 128},
    ),
    "pyramidnet110-270": (
        "pyramidnet",
        "PyramidNet",
        {"widening": 270, "blocks": halved(18), "strides": (1, 2, 2, 1), "bottleneck": False, "exit_width": 128},
    ),
    # CS-KD's and PS-KD's form of it
    "preact-resnet18": (
        "preact_resnet",
        "PreActResNet",
        {**EIGHTEEN, "stem_width": 64, "last_activation": False},
    ),
    "mobilenetv2": ("mobilenet", "MobileNetV2", {"exit_width": 128}),
    "shufflenetv2": ("shufflenet", "ShuffleNetV2", {"exit_width": 128}),
    "googlenet": ("googlenet", "GoogLeNet", {"exit_width": 128}),
    "densenet121": ("densenet", "DenseNet", {"growth": 32, "blocks": (6, 12, 24, 16), "exit_width": 128}),
    # the forms for images of some 224 pixels
    "resnet18-imagenet": (
        "resnet",
        "ResNet",
        {**EIGHTEEN, "imagenet": True, "exit_bias": True},
    ),
    "resnet50-imagenet": bottlenecks(3, 4, 6, 3, imagenet=True),
    "resnet101-imagenet": bottlenecks(3, 4, 23, 3, imagenet=True),
    "resnet152-imagenet": bottlenecks(3, 8, 36, 3, imagenet=True),
}


# Any network of the timm library goes by its name there behind this prefix: `timm:convnext_tiny`
TIMM = "timm:"


class NetworkError(ValueError):
    """A network that cannot be built as asked for; the message says why and what is allowed."""


def build(name: str, *, channels: int, classes: int, size: tuple[int, int], exits: bool, seed: int):
    """A freshly initialised `SectionedNetwork`.

    channels, size: of the images, C and (H, W); exits: a classifier after every section.
    The backbone and the exits draw from generators of their own, so that networks of one seed start
    from the same backbone whether they have exits or not.  Raises NetworkError for a network of timm
    that is not there or does not fit.
    """
    if name.startswith(TIMM):
        form = {"channels": channels, "classes": classes, "size": tuple(size), "exits": exits, "seed": seed}
        return import_module(f"{__name__}.from_timm").build_network(name.removeprefix(TIMM), **form)
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
