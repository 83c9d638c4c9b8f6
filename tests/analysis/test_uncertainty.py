"""Coverage and power are what they promise, by simulation with other numbers than the package draws."""

import math

import numpy as np
import pytest
from scipy import stats

from cifar_lab.analysis.comparison import Sample, compare, summarise
from cifar_lab.analysis.uncertainty import (
    detectable,
    ensemble_accuracy,
    mcnemar,
    probability_of_improvement,
    seeds_and_images,
)


def test_interval_over_seeds_and_images_worked_by_hand():
    # means of seeds 3/4, 1/2, 1/2: variance 1/48, over 3 seeds 1/144; of images 1, 2/3, 2/3, 0: 19/108, over 4 images
    answers = np.array([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]])
    variance = 1 / 144 + 19 / 432
    freedom = variance**2 / ((1 / 144) ** 2 / 2 + (19 / 432) ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert seeds_and_images(answers) == pytest.approx((7 / 12 - half, 7 / 12 + half))
    # means of seeds 3/4 and 1/4: variance 1/8, over 2 seeds 1/16; its interval alone is wider than that with the images
    answers = np.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    half = stats.t.ppf(0.975, 1) * math.sqrt(1 / 16)
    assert seeds_and_images(answers) == pytest.approx((0.5 - half, 0.5 + half))
    assert seeds_and_images(answers, answers) == pytest.approx(
        (-stats.t.ppf(0.975, 2) * math.sqrt(1 / 8), stats.t.ppf(0.975, 2) * math.sqrt(1 / 8))
    )
    assert np.isnan(seeds_and_images(answers[:1])).all()
    assert seeds_and_images(np.ones((3, 5))) == (1, 1)


def simulated(generator, seeds, images, spread_of_seeds, mean=1.0):
    """Answers of networks with some noise on images of some difficulty, both drawn anew."""
    difficulty = generator.normal(0, 1.5, images)
    skill = mean + generator.normal(0, spread_of_seeds, seeds)
    return skill[:, None] + generator.normal(0, 0.5, (seeds, images)) > difficulty


@pytest.mark.parametrize(("images", "spread_of_seeds"), [(2000, 0.01), (2000, 0.1), (300, 0.05)])
def test_intervals_cover_what_they_promise_with_eight_seeds(images, spread_of_seeds):
    generator = np.random.default_rng(7)
    truth = stats.norm.cdf(1.0 / math.sqrt(1.5**2 + 0.5**2 + spread_of_seeds**2))
    both, seeds_only = 0, 0
    for _ in range(600):
        answers = simulated(generator, 8, images, spread_of_seeds)
        low, high = seeds_and_images(answers.astype(float))
        both += low < truth < high
        summary = summarise(answers.mean(1))
        seeds_only += summary.ci_low < truth < summary.ci_high
    assert both / 600 >= 0.93
    if spread_of_seeds == 0.01:
        assert seeds_only / 600 < 0.6  # the same test images every time: it promises nothing about others


@pytest.mark.parametrize("spread_of_seeds", [0.01, 0.1])
def test_intervals_of_differences_cover_what_they_promise(spread_of_seeds):
    generator = np.random.default_rng(8)
    covered = 0
    for _ in range(600):
        difficulty = generator.normal(0, 1.5, 500)
        both = [
            mean + generator.normal(0, spread_of_seeds, (8, 1)) + generator.normal(0, 0.5, (8, 500)) > difficulty
            for mean in (1.0, 1.2)
        ]
        low, high = seeds_and_images(*(answers.astype(float) for answers in both))
        width = math.sqrt(1.5**2 + 0.5**2 + spread_of_seeds**2)
        covered += low < stats.norm.cdf(1.0 / width) - stats.norm.cdf(1.2 / width) < high
    assert covered / 600 >= 0.93


@pytest.mark.parametrize(("n", "first_seed"), [(6, 0), (8, 0), (12, 0), (5, 100), (8, 100)])
def test_the_verdict_has_the_promised_power(n, first_seed):
    """The second sample has the same seeds, or others: paired or not."""
    generator = np.random.default_rng(9)
    paired = first_seed == 0
    difference = detectable(n, paired)
    found = 0
    for _ in range(200):
        first, second = generator.normal(0, 1, (2, n))
        if paired:
            second = first - second  # so that the differences have standard deviation 1
        samples = [
            Sample(name, "test/acc", "d", "s", dict(enumerate(values, start)))
            for name, values, start in (("a", first + difference, 0), ("b", second, first_seed))
        ]
        found += compare(samples)[0].significant
    assert 0.73 < found / 200 < 0.88  # 0.8, with a standard error of 0.028


def test_too_few_seeds_find_nothing():
    assert math.isnan(detectable(5))
    assert math.isnan(detectable(3, paired=False))
    assert detectable(6) > detectable(7) > detectable(8) > detectable(16)
    assert detectable(8, True, 3) > detectable(8)


def test_probability_of_improvement_worked_by_hand():
    # of 6 pairs, 4 are won and one is a tie
    found, low, high = probability_of_improvement(np.array([3.0, 5, 6]), np.array([3.0, 4]))
    assert found == 4.5 / 6
    assert 0 < low < found < high < 1
    assert probability_of_improvement(np.arange(8) + 10.0, np.arange(8.0))[::2] == (1, 1)
    assert probability_of_improvement(np.arange(8) + 10.0, np.arange(8.0))[1] == pytest.approx(0.7556, abs=1e-4)


def test_mcnemar_of_equal_runs():
    assert mcnemar(np.array([True, False]), np.array([True, False])) == 1


def test_an_ensemble_takes_the_mean_of_probabilities():
    probabilities = np.array([[[0.6, 0.4], [0.9, 0.1]], [[0.1, 0.9], [0.6, 0.4]]], dtype=np.float16)
    assert ensemble_accuracy(probabilities, np.array([1, 1])) == 0.5
