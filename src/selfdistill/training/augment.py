"""Augmentation of whole batches on the device where they lie.

Nothing here draws: what is random comes in as tensors of the batch's rows (see plan.py), so that
an image is augmented in the same way in every process, batch or run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Pad N x C x H x W images with zeros on every side and crop each back to H x W.

    offsets: int64 N x 2, the window's row and column in the padded image, 0 to 2 `padding`.
    The result is channels-last in memory.
    """
    if padding == 0:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, [padding] * 4)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # N x H
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)  # N x W
    which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def flip(images: Tensor, flip_mask: Tensor) -> Tensor:
    """Mirror left to right each N x C x H x W image whose entry in `flip_mask`, bool N, is true."""
    return torch.where(flip_mask.view(-1, 1, 1, 1), images.flip(3), images)


def cutout(images: Tensor, size: int, centres: Tensor) -> Tensor:
    """Blank a `size` x `size` square of each image (DeVries and Taylor 2017), clipped at the border.

    centres: N x 2 in [0, 1), the square's centre as a share of height and width.
    """
    if size == 0:
        return images
    height, width = images.shape[-2:]
    top = (centres[:, 0] * height).long() - size // 2
    left = (centres[:, 1] * width).long() - size // 2
    inside = between(top, size, height).unsqueeze(2) & between(left, size, width).unsqueeze(1)  # N x H x W
    return images.masked_fill(inside.unsqueeze(1), 0)


def mixup(images: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share x image + (1 - share) x partner (Zhang et al. 2018, section 2).

    images, partners: floats, N x C x H x W; share: N, of the image itself.
    """
    share = share.view(-1, 1, 1, 1).to(images.dtype)
    return share * images + (1 - share) * partners


def cutmix(images: Tensor, partners: Tensor, share: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of the partner into each image (Yun et al. 2019, equation 2).

    The box has about 1 - `share` of the area and its centre at `centres`, N x 2 in [0, 1); it is
    clipped at the border.  Returns the images and the share of pixels, N, that stayed.
    """
    height, width = images.shape[-2:]
    side = (1 - share).clamp(min=0).sqrt()
    tall, wide = (side * height).long(), (side * width).long()
    top = (centres[:, 0] * height).long() - tall // 2
    left = (centres[:, 1] * width).long() - wide // 2
    inside = between(top, tall, height).unsqueeze(2) & between(left, wide, width).unsqueeze(1)  # N x H x W
    mixed = torch.where(inside.unsqueeze(1), partners, images)
    return mixed, 1 - inside.float().mean(dim=(1, 2))


def between(start: Tensor, length: Tensor | int, size: int) -> Tensor:
    """bool N x `size`: the places from `start`, int64 N, up to `start + length`."""
    places = torch.arange(size, device=start.device)
    start = start.unsqueeze(1)
    end = start + (length.unsqueeze(1) if isinstance(length, Tensor) else length)
    return (places >= start) & (places < end)
