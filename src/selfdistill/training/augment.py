"""Augmentation of whole batches of uint8 images, on the device where they lie."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad N x C x H x W images with zeros on every side and crop each back to H x W at random."""
    if padding == 0:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # N x H
    columns = offsets[1] + torch.arange(width, device=images.device)  # N x W
    which = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each N x C x H x W image left to right with probability one half."""
    heads = torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool().to(images.device)
    return torch.where(heads, images.flip(3), images)
