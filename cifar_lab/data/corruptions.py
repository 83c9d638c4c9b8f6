"""Corruptions of images, as in CIFAR-10-C: numpy and scipy; resizing and JPEG by Pillow.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019, arXiv
1903.12261, with their constants for 32 x 32 pixels. The results are not the published files: the random numbers are
others, motion blur is not ImageMagick's, zooms are not rounded to whole pixels, and JPEG depends on Pillow's encoder.
Frost is left out, because it needs their photographs. As in the published files, a higher strength is not always
further from the original: glass blur, for example, alternates more shuffling with more smoothing.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
STRENGTHS = 5
SIDE = 32
CHUNK = 250  # images at a time
GRID = np.arange(SIDE)
CONSTANTS: dict[str, Sequence[tuple[float, ...]]] = {  # by strength
    "gaussian_noise": [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
    "shot_noise": [(500,), (250,), (100,), (75,), (50,)],
    "impulse_noise": [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
    "contrast": [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
    "elastic_transform": [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
    "pixelate": [(30,), (28,), (27,), (24,), (20,)],
    "jpeg_compression": [(80,), (65,), (58,), (50,), (40,)],
}
COMPUTED = tuple(CONSTANTS)  # the names that corrupt() takes


def corrupt(images: np.ndarray, name: str, strength: int) -> np.ndarray:
    """(n, 32, 32, 3) uint8 images corrupted with strength 1 to 5; name: one of COMPUTED.

    Every image has a generator of its own, from the name, the strength and its index.
    """
    constants, parts = CONSTANTS[name][strength - 1], []
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK]
        generators = [np.random.default_rng((NAMES.index(name), strength, start + index)) for index in range(len(some))]
        parts.append(_uint8(FUNCTIONS[name](some / 255, generators, *constants)))
    return np.concatenate(parts)


# Below, x is (b, 32, 32, 3) float64 from 0 to 1, with one generator for each image. Results may leave that range.


def _uint8(x: np.ndarray) -> np.ndarray:
    return np.rint(255 * x.clip(0, 1)).astype(np.uint8)


def _normal(generators: Sequence[Generator], *shape: int) -> np.ndarray:
    return np.stack([generator.standard_normal(shape) for generator in generators])


def _uniform(generators: Sequence[Generator], low: float, high: float, *shape: int) -> np.ndarray:
    return np.stack([generator.uniform(low, high, shape) for generator in generators])


def _gaussian_noise(x: np.ndarray, generators: Sequence[Generator], std: float) -> np.ndarray:
    return x + std * _normal(generators, *x.shape[1:])


def _shot_noise(x: np.ndarray, generators: Sequence[Generator], photons: float) -> np.ndarray:
    counts = [generator.poisson(image * photons) for generator, image in zip(generators, x, strict=True)]
    return np.stack(counts) / photons


def _impulse_noise(x: np.ndarray, generators: Sequence[Generator], share: float) -> np.ndarray:
    draws = _uniform(generators, 0, 1, *x.shape[1:])
    return np.where(draws < share / 2, 0, np.where(draws > 1 - share / 2, 1, x))


def _defocus_blur(x: np.ndarray, generators: Sequence[Generator], radius: float, softness: float) -> np.ndarray:
    distance = np.hypot(*np.mgrid[-3:4, -3:4])
    disk = ndimage.gaussian_filter((distance <= radius).astype(float), softness, radius=1)
    return ndimage.convolve(x, (disk / disk.sum())[None, :, :, None], mode="mirror")


def _glass_blur(x: np.ndarray, generators: Sequence[Generator], sigma: float, rounds: float) -> np.ndarray:
    """Every pixel, from the last to the first, changes places with itself or a neighbour above, left or both."""
    x = ndimage.gaussian_filter(x, (0, sigma, sigma, 0))
    number = np.arange(len(x))
    for _ in range(int(rounds)):
        moves = np.stack([generator.integers(-1, 1, (SIDE, SIDE, 2)) for generator in generators])
        for row in GRID[:0:-1]:
            for column in GRID[:0:-1]:
                other = number, row + moves[:, row, column, 0], column + moves[:, row, column, 1]
                x[:, row, column], x[other] = x[other], x[:, row, column].copy()
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0))


def _motion_blur(x: np.ndarray, generators: Sequence[Generator], radius: float, sigma: float) -> np.ndarray:
    return _smear(x, _uniform(generators, -45, 45), radius, sigma)


def _smear(x: np.ndarray, degrees: np.ndarray, radius: float, sigma: float) -> np.ndarray:
    """A weighted mean of shifted copies along the direction of each image, (b,); the weights are half a Gaussian."""
    shifts = np.arange(2 * radius + 1)
    weights = np.exp(-(shifts**2) / (2 * sigma**2))
    angles, number = np.radians(degrees)[:, None], np.arange(len(x))[:, None, None]
    total = np.zeros_like(x)
    for shift, weight in zip(shifts, weights / weights.sum(), strict=True):
        rows, columns = (
            (GRID + np.rint(shift * part).astype(int)).clip(0, SIDE - 1) for part in (np.sin(angles), np.cos(angles))
        )
        total += weight * x[number, rows[:, :, None], columns[:, None, :]]
    return total


def _zoom_blur(x: np.ndarray, generators: Sequence[Generator], limit: float) -> np.ndarray:
    factors = np.arange(1, limit, 0.01)
    total = sum(map(_zoom_matrix, factors), start=np.eye(SIDE * SIDE))
    return _mapped(total / (len(factors) + 1), x)


def _zoom_matrix(factor: float) -> np.ndarray:
    """(1024, 1024), from all pixels to all pixels: enlarges the middle by linear interpolation."""
    middle = (SIDE - 1) / 2
    places = middle + (GRID - middle) / factor
    line = np.maximum(0, 1 - np.abs(places[:, None] - GRID))
    return np.kron(line, line)


def _mapped(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    pixels = x.reshape(len(x), SIDE * SIDE, -1)
    return np.tensordot(pixels, matrix, (1, 1)).swapaxes(1, 2).reshape(x.shape)


def _snow(x: np.ndarray, generators: Sequence[Generator], *constants: float) -> np.ndarray:
    mean, std, zoom, threshold, radius, sigma, kept = constants
    flakes = _mapped(_zoom_matrix(zoom), mean + std * _normal(generators, SIDE, SIDE, 1))
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _smear(flakes, _uniform(generators, -135, -45), radius, sigma)
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    pale = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + flakes + flakes[:, ::-1, ::-1]


def _fog(x: np.ndarray, generators: Sequence[Generator], amount: float, decay: float) -> np.ndarray:
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + amount * _plasma(generators, decay)[..., None]) * brightest / (brightest + amount)


def _plasma(generators: Sequence[Generator], decay: float) -> np.ndarray:
    """(b, 32, 32) clouds from 0 to 1 by the diamond-square algorithm on a torus.

    Every halving of the step divides the random part by the square of `decay`.
    """
    draws = _uniform(generators, -1, 1, SIDE, SIDE)
    clouds, step, size = np.zeros_like(draws), SIDE, 1.0
    while step > 1:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        below, right = np.roll(corners, -1, 1), np.roll(corners, -1, 2)
        centres = (corners + below + right + np.roll(below, -1, 2)) / 4 + size * draws[:, half::step, half::step]
        above = (corners + right + centres + np.roll(centres, 1, 1)) / 4
        left = (corners + below + centres + np.roll(centres, 1, 2)) / 4
        clouds[:, half::step, half::step] = centres
        clouds[:, ::step, half::step] = above + size * draws[:, ::step, half::step]
        clouds[:, half::step, ::step] = left + size * draws[:, half::step, ::step]
        step, size = half, size / decay**2
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    return clouds / clouds.max(axis=(1, 2), keepdims=True)


def _brightness(x: np.ndarray, generators: Sequence[Generator], added: float) -> np.ndarray:
    """More of the value in HSV, which is the largest channel; hue and saturation stay."""
    value = x.max(axis=3, keepdims=True)
    return np.where(value > 0, x / np.where(value > 0, value, 1), 1) * (value + added).clip(0, 1)


def _contrast(x: np.ndarray, generators: Sequence[Generator], factor: float) -> np.ndarray:
    means = x.mean(axis=(1, 2), keepdims=True)
    return (x - means) * factor + means


def _elastic_transform(
    x: np.ndarray, generators: Sequence[Generator], size: float, sigma: float, corner: float
) -> np.ndarray:
    """A random affine map, which moves three points by up to `corner` pixels, then smooth local displacements."""
    points = np.array([[26, 26], [26, 6], [6, 6]], float)
    moved = points + _uniform(generators, -corner, corner, 3, 2)
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(x), 3, 1))], axis=2), points)  # (b, 3, 2)
    places = np.stack([*np.meshgrid(GRID, GRID, indexing="ij"), np.ones((SIDE, SIDE))], axis=2)
    x = _sample(x, places @ back[:, None])
    if size == 0:
        return x
    shifts = ndimage.gaussian_filter(_uniform(generators, -1, 1, SIDE, SIDE, 2), (0, sigma, sigma, 0), truncate=3)
    return _sample(x, places[..., :2] + size * shifts)


def _sample(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Pixels at (b, 32, 32, 2) places by linear interpolation; beyond its edges an image is mirrored."""
    last = SIDE - 1
    places = last - np.abs(last - places % (2 * last))
    corner = places.astype(int).clip(0, last - 1)
    rest = places - corner
    number, total = np.arange(len(x))[:, None, None], np.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - rest[..., 0]) * np.abs(1 - right - rest[..., 1])
            total += weight[..., None] * x[number, corner[..., 0] + down, corner[..., 1] + right]
    return total


def _pixelate(x: np.ndarray, generators: Sequence[Generator], side: float) -> np.ndarray:
    small, box = (int(side),) * 2, Image.Resampling.BOX
    return _with_pillow(x, lambda image: image.resize(small, box).resize((SIDE, SIDE), box))


def _jpeg_compression(x: np.ndarray, generators: Sequence[Generator], quality: float) -> np.ndarray:
    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _with_pillow(x, compress)


def _with_pillow(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in _uint8(x)]) / 255


FUNCTIONS: dict[str, Callable[..., Any]] = {name: globals()[f"_{name}"] for name in COMPUTED}
