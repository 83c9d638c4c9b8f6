"""Transformations of image batches, on their device."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv

from cifar_lab.sections import DataConfig


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


def draw_augmentation(count: int, data: DataConfig, generator: torch.Generator) -> torch.Tensor:
    """(count, 8) float32, what `augment` needs for each of `count` images, drawn on the CPU.

    Factors of brightness and contrast; centre of a square to be cut out; share that an image keeps when it is mixed;
    centre and side of a square that it does not keep. Centres are shares of the image, the side is in pixels.
    With mixup and CutMix, each image gets one of them, with equal probability.
    """
    draws = torch.rand(count, 8, generator=generator)
    draws[:, :2] = 1 + data.jitter * (2 * draws[:, :2] - 1)
    cut = draws[:, 7] < (0.5 if data.mixup else 1.0) if data.cutmix else torch.zeros(count, dtype=torch.bool)
    if data.mixup or data.cutmix:
        alphas = np.where(cut, data.cutmix, data.mixup)
        kept = torch.from_numpy(betaincinv(alphas, alphas, draws[:, 4].double().numpy())).float()  # Beta(alpha, alpha)
        draws[:, 4] = kept.where(~cut, 1.0)
        draws[:, 7] = (32 * (1 - kept).sqrt()).where(cut, 0.0)
    return draws


def augment(
    images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor, data: DataConfig, mean: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Jitter, cutout (DeVries and Taylor 2017), mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), as `data` says.

    images: (b, 32, 32, 3) uint8, as they are returned. labels: (b,) int64; of mixed images (b, classes) float32 shares.
    draws: rows of `draw_augmentation`. mean: (3,) uint8, the colour of a square that is cut out. An image is mixed with
    the one before it in the batch, whose order is random.
    """
    if data.jitter:
        images = _jitter(images, *draws[:, :2].T)
    if data.cutout:
        images = torch.where(_squares(draws[:, 2:4], torch.full_like(draws[:, 7], data.cutout)), mean, images)
    if data.mixup or data.cutmix:
        kept = draws[:, 4].view(-1, 1, 1, 1) * ~_squares(draws[:, 5:7], draws[:, 7])
        others = images.roll(1, 0)
        images = torch.lerp(others.float(), images.float(), kept).round().to(torch.uint8)
        shares = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
        labels = torch.lerp(shares.roll(1, 0), shares, kept.mean((1, 2)))
    return images, labels


def _jitter(images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    """(b, side, side, 3) uint8 images with their contrast, then their brightness, multiplied by (b,) factors."""
    pixels = images.float()
    mean = pixels.mean((1, 2, 3), keepdim=True)
    changed = (mean + contrast.view(-1, 1, 1, 1) * (pixels - mean)) * brightness.view(-1, 1, 1, 1)
    return changed.round().clamp(0, 255).to(torch.uint8)


def _squares(centres: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """(b, 32, 32, 1) bool: the pixels of squares with (b,) `sides` around (b, 2) `centres`, shares of the image."""
    pixels = torch.arange(32, device=centres.device) + 0.5
    down, right = ((pixels - 32 * centres[:, axis, None]).abs() < sides[:, None] / 2 for axis in (0, 1))
    return (down[:, :, None] & right[:, None, :])[..., None]
