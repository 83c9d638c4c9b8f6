"""Transformations of image batches, on their device."""

import torch
import torch.nn.functional as F


def reflect_border(images: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """`images` padded by reflection along `axis`, with `width` pixels on both sides."""
    before = images.narrow(axis, 1, width).flip(axis)
    after = images.narrow(axis, images.shape[axis] - 1 - width, width).flip(axis)
    return torch.cat([before, images, after], axis)


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """(b, height, width, 3) uint8 to (b, side, side, 3) uint8, bilinear with antialiasing."""
    if images.shape[1:3] == (side, side):
        return images
    pixels = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":
        pixels = pixels.float()  # only the CPU can resize uint8, which is ten times faster
    resized = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    if resized.is_floating_point():
        resized = resized.round().to(torch.uint8)
    return resized.permute(0, 2, 3, 1)
