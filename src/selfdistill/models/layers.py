"""Parts that several networks share."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    bias: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """A convolution padded to keep the size at stride 1, batch normalisation, and an activation if any."""
    layers = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


def pad_channels(x: Tensor, channels: int) -> Tensor:
    """N x C x H x W with zeros as further channels, up to `channels`; a shortcut without parameters."""
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def initialise(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Every convolution's weights from a normal of variance 2 / (k * k * outputs) (He et al. 2015), or of the
    inputs with `fan_in`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
