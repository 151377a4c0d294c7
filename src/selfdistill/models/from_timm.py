"""Networks of the timm library, by its names: a backbone cut into the stages that it names.

timm lists in `feature_info` which modules' outputs are useful as feature maps.  The last four of those are the
sections; where all are of one size, as a ViT's blocks are, four at equal distances.  No weights are downloaded.
Imported only when such a network is built: timm takes some seconds.
"""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.vision import import_torchvision
from selfdistill.models import NetworkError
from selfdistill.models.cut import AsMap, CutNetwork, cut
from selfdistill.models.sections import seeded

SECTIONS = 4  # at most, as BYOT has; deep networks name five, and the first is hardly more than the stem
EXIT_WIDTH = 128


def build_network(
    name: str, *, channels: int, classes: int, size: tuple[int, int], exits: bool, seed: int
) -> CutNetwork:
    """A freshly initialised network of timm, `name` without the prefix; arguments as of `models.build`.

    One that is made for a fixed size is made for `size`.  Raises NetworkError for a name that timm does not
    have, for one that does not run at this size, and for one whose stages give no maps or that has no linear
    classifier.
    """
    import_torchvision()
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise NetworkError(f"timm:{name}: timm {timm.__version__} has no such network; the nearest: {', '.join(near)}")
    form = {"in_chans": channels, "num_classes": classes, "pretrained": False}
    try:
        return cut_backbone(name, form, (channels, *size), exits, seed)
    except NetworkError as refused:
        try:
            return cut_backbone(name, {**form, "img_size": tuple(size)}, (channels, *size), exits, seed)
        except TypeError:  # it is made for any size
            raise refused from None


def cut_backbone(name: str, form: dict, shape: tuple[int, int, int], exits: bool, seed: int) -> CutNetwork:
    """The same, of a backbone that timm makes of the arguments `form`; shape: C, H, W of the images."""
    import timm

    with seeded(seed):
        try:
            backbone = timm.create_model(name, **form)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise NetworkError(f"timm:{name}: it cannot be made so ({first_line(error)})") from None
    stages = chosen(list(getattr(backbone, "feature_info", None) or []))
    classifier = classifier_name(backbone)
    if len(stages) < 2 or classifier is None:
        lacking = "feature maps" if len(stages) < 2 else "classifier"
        raise NetworkError(f"timm:{name}: timm names no {lacking} of it; allowed: a network with both")
    arguments: dict[str, Any] = {
        "classifier": classifier,
        "input_shape": shape,
        "as_map": layout(backbone, stages, shape),
    }
    sections = [stage["module"] for stage in stages]
    try:
        trunk = cut(backbone, sections, **arguments)
        found = shapes_of(trunk, shape)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, AttributeError) as error:
        height, width = shape[1:]
        raise NetworkError(
            f"timm:{name}: it cannot be cut for images of {height} x {width} pixels ({first_line(error)})"
        ) from None
    for stage, (_, width, *_) in zip(stages, found, strict=True):
        if width != stage["num_chs"]:
            raise NetworkError(
                f"timm:{name}: the output of {stage['module']} has {width} in the place of its {stage['num_chs']} "
                "channels; allowed: networks with maps N x C x H x W"
            )
    if not exits:
        return trunk
    with seeded(seed + 1):
        return cut(backbone, sections, exit_width=EXIT_WIDTH, **arguments)


def chosen(stages: list[dict]) -> list[dict]:
    """The sections among what timm's `feature_info` lists."""
    if len(stages) > SECTIONS and len({stage["reduction"] for stage in stages}) == 1:
        return [stages[len(stages) * (i + 1) // SECTIONS - 1] for i in range(SECTIONS)]
    return stages[-SECTIONS:]


def layout(backbone: nn.Module, stages: list[dict], shape: tuple[int, int, int]) -> AsMap:
    """How the outputs of a backbone become maps N x C x H x W: channels that stand last come to the second place,
    and tokens N x L x C to their places in the image, those of no place (class, registers) left out."""
    last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    by_name = {stage["module"]: stage for stage in stages}
    _, h, w = shape

    def as_map(name: str, output: Tensor) -> Tensor:
        stage = by_name[name]
        if output.ndim == 4 and last and output.shape[1] != stage["num_chs"]:
            return output.permute(0, 3, 1, 2)
        if output.ndim == 3:
            reduction = stage["reduction"]
            grids = [(h // reduction, w // reduction), (-(-h // reduction), -(-w // reduction))]
            for places in (output[:, prefix:], output):  # some add their class token behind the sections
                for height, width in grids:
                    if places.shape[1] == height * width:
                        return places.transpose(1, 2).unflatten(2, (height, width))
            raise ValueError(f"{name}: {output.shape[1]} tokens; allowed: {prefix} + {grids[0][0]} x {grids[0][1]}")
        return output

    return as_map


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def classifier_name(backbone: Any) -> str | None:
    """The layer that gives the logits: the first of two where these are a mean, the innermost where it is wrapped."""
    head = backbone.get_classifier()
    head = head[0] if isinstance(head, tuple) else head
    layers = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)] if isinstance(head, nn.Module) else []
    return next((name for name, module in backbone.named_modules() if layers and module is layers[0] and name), None)


@torch.no_grad()
def shapes_of(network: CutNetwork, shape: tuple[int, int, int]) -> list[torch.Size]:
    """The shapes of the maps of one black image; the network is left in training mode."""
    network.eval()
    shapes = [m.shape for m in network.maps(torch.zeros(1, *shape))]
    network.train()
    return shapes
