"""Corruptions: deterministic, of the right strength, and what a few of them do to simple images."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from cifar_lab.data.corruptions import COMPUTED, NAMES, corrupt

# Their constants do not go one way: glass blur (more shuffling, then more smoothing), motion blur (strengths 3 and 4
# differ by the angles that are drawn), elastic transform (a smaller affine map, with stronger displacements).
NOT_ORDERED = {"glass_blur", "motion_blur", "elastic_transform"}


@pytest.fixture(scope="module")
def photos():
    """40 pieces of a photograph."""
    photo = load_sample_image("china.jpg")[::2, ::2]
    rows, columns = 5, 8
    pieces = photo[: 32 * rows, : 32 * columns].reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return np.ascontiguousarray(pieces.reshape(-1, 32, 32, 3))


@pytest.fixture(scope="module")
def corrupted(photos):
    """By name (strengths, n, 32, 32, 3)."""
    return {name: np.stack([corrupt(photos, name, strength) for strength in range(1, 6)]) for name in COMPUTED}


def psnr(images, corrupted):
    return 10 * np.log10(255**2 / ((images.astype(float) - corrupted) ** 2).mean())


def test_all_of_the_paper_but_frost_are_computed():
    assert len(NAMES) == 15
    assert {*NAMES} - {*COMPUTED} == {"frost"}


@pytest.mark.parametrize("name", COMPUTED)
def test_images_keep_their_shape_and_change_more_with_more_strength(photos, corrupted, name):
    found = corrupted[name]
    assert (found.shape, found.dtype) == ((5, *photos.shape), np.uint8)
    ratios = [psnr(photos, images) for images in found]
    assert all(10 < ratio < 45 for ratio in ratios)
    if name not in NOT_ORDERED:
        assert ratios == sorted(ratios, reverse=True)


def test_strengths_that_are_not_ordered_grow_in_what_their_constants_vary(photos, corrupted):
    ratios = {name: [psnr(photos, images) for images in corrupted[name]] for name in NOT_ORDERED}
    glass, motion, elastic = ratios["glass_blur"], ratios["motion_blur"], ratios["elastic_transform"]
    assert glass[1] > glass[3]  # shuffled once or twice
    assert glass[2] > glass[4]
    assert motion[0] > motion[2] > motion[4]
    assert elastic[0] < elastic[4]  # the affine map gets smaller


@pytest.mark.parametrize("name", COMPUTED)
def test_an_image_is_corrupted_the_same_way_every_time_wherever_it_is_cut_off(photos, corrupted, name):
    np.testing.assert_array_equal(corrupt(photos[:3], name, 4), corrupted[name][3][:3])


def test_two_images_and_two_strengths_get_different_noise():
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    noise = [corrupt(grey, name, strength) for name in ("gaussian_noise", "shot_noise") for strength in (1, 2)]
    first, *others = [image.astype(int) - 128 for images in noise for image in images]
    assert all(abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1 for other in others)
    assert first.std() == pytest.approx(0.04 * 255, rel=0.05)  # the constant of gaussian noise, strength 1


def test_simple_images_worked_by_hand():
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate"):
        np.testing.assert_array_equal(corrupt(grey, name, 5), grey, err_msg=name)
    colour = np.zeros((1, 32, 32, 3), np.uint8)
    colour[..., :16, :] = [100, 50, 0]
    found = corrupt(colour, "brightness", 5)  # the value grows by 0.3, the hue stays
    assert found[0, 0, 0].tolist() == [176, 88, 0]  # 100 + 76.5, rounded to even
    assert found[0, 0, 31].tolist() == [76, 76, 76]
    means = colour[0].mean(axis=(0, 1))
    np.testing.assert_allclose(corrupt(colour, "contrast", 2)[0, 0, 0], means + (colour[0, 0, 0] - means) / 2, atol=0.5)
    point = np.zeros((1, 32, 32, 3), np.uint8)
    point[0, 16, 16] = 255
    blurred = corrupt(point, "defocus_blur", 5)[0, ..., 0]  # a disk of radius 1.5 covers nine pixels
    assert blurred[15:18, 15:18].tolist() == [[28] * 3] * 3
    assert np.count_nonzero(blurred) == 9
    salt = corrupt(np.repeat(grey, 50, axis=0), "impulse_noise", 5)
    assert {*np.unique(salt)} == {0, 100, 255}
    assert (salt != 100).mean() == pytest.approx(0.07, rel=0.05)
