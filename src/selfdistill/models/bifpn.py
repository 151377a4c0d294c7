"""A bidirectional feature pyramid on a network's maps: the self-teacher of FRSKD (Ji et al. 2021), in the form
of its public code's BiFPNc (models/bifpnc.py @3173f22), for maps of any sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.models.sections import Outputs


def pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def separable(channels: int) -> nn.Module:
    """Two depthwise-separable 3x3 convolutions with batch normalisation, ReLU between them."""

    def one() -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]

    return nn.Sequential(*one(), nn.ReLU(), *one())


def smaller(features: Tensor, size: torch.Size) -> Tensor:
    """3x3 maximum pooling to `size`, padded as far as needed on the far sides first (maps are not negative)."""
    stride = [max(round(have / want), 1) for have, want in zip(features.shape[2:], size, strict=True)]
    short = [(want - 1) * s + 3 - have for have, want, s in zip(features.shape[2:], size, stride, strict=True)]
    rows, columns = (max(n, 0) for n in short)
    padded = F.pad(features, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    pooled = F.max_pool2d(padded, 3, stride)
    return pooled if pooled.shape[2:] == size else F.adaptive_max_pool2d(pooled, size)


class Fusion(nn.Module):
    """A weighted sum of maps of one shape; the weights are learnt, not negative, and add up to one."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-6)
        return sum(w * m for w, m in zip(weights, maps, strict=True))


class BiFPN(nn.Module):
    """From the maps of a network's sections to refined maps and to logits of their own.

    channels: of each section's map; width: the factor by which the refined maps have more.
    """

    def __init__(self, channels: list[int], *, classes: int, width: int) -> None:
        super().__init__()
        wide = [width * c for c in channels]
        deeper, shallower = range(1, len(channels)), range(len(channels) - 1)
        self.lateral = nn.ModuleList(pointwise(c, w) for c, w in zip(channels, wide, strict=True))
        self.straight = nn.ModuleList(pointwise(channels[i], wide[i]) for i in deeper)
        self.upward = nn.ModuleList(pointwise(wide[i + 1], wide[i]) for i in shallower)
        self.up_fusion = nn.ModuleList(Fusion(2) for _ in shallower)
        self.up_mixing = nn.ModuleList(separable(wide[i]) for i in shallower)
        self.downward = nn.ModuleList(pointwise(wide[i - 1], wide[i]) for i in deeper)
        self.down_fusion = nn.ModuleList(Fusion(3 if i < len(channels) - 1 else 2) for i in deeper)
        self.down_mixing = nn.ModuleList(separable(wide[i]) for i in deeper)
        self.classifier = nn.Linear(wide[-1], classes)

    def forward(self, images: Tensor, student: Outputs) -> Outputs:
        maps = [m.relu() for m in student.maps]
        tops = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(maps) - 1)):  # the deep ones inform the shallow ones
            larger = F.interpolate(tops[i + 1].relu(), tops[i].shape[2:])
            tops[i] = self.up_mixing[i](self.up_fusion[i](tops[i], self.upward[i](larger)))
        refined = [tops[0].relu()]
        for i in range(1, len(maps)):  # and back
            parts = [self.straight[i - 1](maps[i])]
            parts += [tops[i].relu()] if i < len(maps) - 1 else []
            parts += [self.downward[i - 1](smaller(refined[-1], maps[i].shape[2:]))]
            refined.append(self.down_mixing[i - 1](self.down_fusion[i - 1](*parts)).relu())
        feature = refined[-1].mean(dim=(2, 3))
        return Outputs([self.classifier(feature)], [feature], refined)
