"""Networks of the timm library, by its names: a backbone cut after the last four stages that it names.

timm lists in `feature_info` which modules' outputs are of use as feature maps; those are the sections.  No
weights are downloaded.  Imported only when such a network is built: timm takes some seconds.
"""

import difflib

import torch
from torch import nn

from selfdistill.data.vision import import_torchvision
from selfdistill.models import NetworkError
from selfdistill.models.sections import CutNetwork, cut, seeded

SECTIONS = 4  # at most, as BYOT has; deep networks name five, the first of which is hardly more than the stem
EXIT_WIDTH = 128


def build_network(
    name: str, *, channels: int, classes: int, size: tuple[int, int], exits: bool, seed: int
) -> CutNetwork:
    """A freshly initialised network of timm, `name` without the prefix; arguments as of `models.build`.

    Raises NetworkError for a name that timm does not have, for one that does not run at this size, and for
    one without feature maps N x C x H x W.
    """
    import_torchvision()
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise NetworkError(f"timm:{name}: timm {timm.__version__} has no such network; the nearest: {', '.join(near)}")
    with seeded(seed):
        backbone = timm.create_model(name, in_chans=channels, num_classes=classes, pretrained=False)
    maps = list(getattr(backbone, "feature_info", None) or [])[-SECTIONS:]
    classifier = name_of(backbone, backbone.get_classifier())
    if len(maps) < 2 or classifier is None:
        raise NetworkError(f"timm:{name}: timm names no feature maps or no classifier of it; allowed: one with both")
    sections, shape = [entry["module"] for entry in maps], (channels, *size)
    try:
        trunk = cut(backbone, sections, classifier=classifier, input_shape=shape)
        found = shapes_of(trunk, shape)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(f"timm:{name}: it cannot take images of {size[0]} x {size[1]} pixels ({reason})") from None
    for entry, (_, width, *_) in zip(maps, found, strict=True):
        if width != entry["num_chs"]:
            raise NetworkError(
                f"timm:{name}: the output of {entry['module']} has {width} in the place of its {entry['num_chs']} "
                "channels; allowed: networks with maps N x C x H x W"
            )
    if not exits:
        return trunk
    with seeded(seed + 1):
        return cut(backbone, sections, classifier=classifier, input_shape=shape, exit_width=EXIT_WIDTH)


def name_of(backbone: nn.Module, wanted: nn.Module) -> str | None:
    return next((name for name, module in backbone.named_modules() if module is wanted and name), None)


@torch.no_grad()
def shapes_of(network: CutNetwork, shape: tuple[int, int, int]) -> list[torch.Size]:
    """The shapes of the maps of one black image; the network is left in training mode."""
    network.eval()
    shapes = [m.shape for m in network.maps(torch.zeros(1, *shape))]
    network.train()
    return shapes
