import math

import numpy as np
import pytest

from cifar_lab.analysis.comparison import Sample, compare, summarise
from cifar_lab.analysis.tables import method, number, unit
from cifar_lab.analysis.uncertainty import detectable
from cifar_lab.errors import UserError


def test_mean_sample_std_and_t_interval_worked_by_hand():
    # mean 3, squared deviations 4 + 1 + 0 + 1 + 4 = 10, variance 10 / 4; t for 4 degrees of freedom is 2.7764
    summary = summarise([1, 2, 3, 4, 5])
    assert (summary.n, summary.mean) == (5, 3)
    assert summary.std == pytest.approx(math.sqrt(2.5))
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert (summary.ci_low, summary.ci_high) == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_one_value_has_no_spread_and_none_is_an_error():
    summary = summarise([0.25])
    assert (summary.n, summary.mean, str(summary)) == (1, 0.25, "25.00 %")
    assert math.isnan(summary.std)
    assert math.isnan(summary.ci_low)
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_shown_in_percent():
    assert str(summarise([0.5, 0.7])) == "60.00 ± 14.14 %"


def sample(name, values, first_seed=0, metric="test/acc", data="d", split="s"):
    return Sample(name, metric, data, split, dict(enumerate(values, first_seed)))


def test_paired_difference_worked_by_hand():
    # differences 1 to 6: mean 3.5, std 1.8708, t for 5 degrees of freedom 2.5706; of the 64 signs two are as extreme
    (found,) = compare([sample("a", [2, 4, 6, 8, 10, 12]), sample("b", [1, 2, 3, 4, 5, 6])])
    assert (found.n, found.paired, found.mean, found.p, found.smallest_p) == (6, True, 3.5, 2 / 64, 2 / 64)
    half = 2.570582 * 1.870829 / math.sqrt(6)
    assert found.ci == pytest.approx((3.5 - half, 3.5 + half), rel=1e-6)
    assert found.correlation == pytest.approx(1)
    assert found.improvement[0] == 28.5 / 36  # of the 36 pairs 27 are higher and 3 equal
    assert (found.spread, found.detectable) == pytest.approx((1.870829, 1.870829 * detectable(6)))
    assert found.significant
    assert found.verdict == "a is higher"


def test_only_seeds_that_both_have_are_paired():
    # seeds 2 and 3: 7 - 1 and 8 - 4, mean 5; four signs, two as extreme
    (found,) = compare([sample("a", [5, 6, 7, 8]), sample("b", [1, 4, 9], first_seed=2)])
    assert (found.n, found.paired, found.mean, found.p) == (2, True, 5, 0.5)
    assert found.verdict == "n is too small for p < 0.05"


def test_samples_without_common_seeds_are_compared_as_a_whole():
    # Welch: means 2 and 5, both variances 1 / 3, so 4 degrees of freedom, t 2.7764; 2 of 20 groupings as extreme
    (found,) = compare([sample("a", [1, 2, 3]), sample("b", [4, 5, 6], first_seed=10)])
    assert (found.n, found.paired, found.mean) == (3, False, -3)
    assert found.p == pytest.approx(2 / 20)
    half = 2.776445 * math.sqrt(2 / 3)
    assert found.ci == pytest.approx((-3 - half, -3 + half), rel=1e-6)


def test_one_seed_gives_no_test():
    (found,) = compare([sample("a", [0.5]), sample("b", [0.75])])
    assert (found.mean, found.paired) == (-0.25, False)
    assert np.isnan([found.p, *found.ci, *found.images_ci]).all()
    assert found.verdict == "one run each tells nothing about others"


def answered(name, *answers, later=()):
    """A sample of an accuracy with the images that each seed classified correctly."""
    correct = {seed: np.array(each, dtype=bool) for seed, each in enumerate(answers)}
    values = {seed: each.mean() for seed, each in correct.items()}
    return Sample(name, "test/acc", "d", "s", values, correct, later=frozenset(later))


def test_two_single_runs_are_compared_image_by_image():
    # 9 images only the first gets right, 1 only the second: p = 2 (1 + 10) / 2**10
    first, second = [1] * 9 + [0] + [1] * 90, [0] * 9 + [1] + [1] * 90
    (found,) = compare([answered("a", first), answered("b", second)])
    assert found.p == pytest.approx(22 / 1024)
    assert found.verdict == "these two runs differ"
    (found,) = compare([answered("a", first[2:]), answered("b", second[2:])])
    assert found.p == pytest.approx(18 / 256)
    assert found.verdict == "one run each tells nothing about others"
    several = compare([answered("a", first), answered("b", second), answered("c", second)])
    assert [found.p for found in several] == pytest.approx([66 / 1024, 66 / 1024, 1])  # Holm: 3 of them
    assert method(several).count("McNemar's exact test of two runs, adjusted for 3 pairs (Holm)") == 1


def test_an_interval_over_images_is_wider_than_over_seeds():
    random = np.random.default_rng(0)
    easy = random.random(1000)
    answers = [[easy > 0.1 + shift + 0.1 * random.random(1000) for _ in range(8)] for shift in (0, 0.1)]
    (found,) = compare([answered("a", *answers[0]), answered("b", *answers[1])])
    assert found.significant
    assert found.images_ci[0] < found.ci[0] < found.mean < found.ci[1] < found.images_ci[1]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0, "no clear difference; equal within the margin"),
        (0.2, "a is higher; equal within the margin"),
        (0.5, "a is higher"),
        (0.09, "no clear difference; a is not worse than b by the margin"),
        (-0.09, "no clear difference; b is not worse than a by the margin"),
    ],
)
def test_equality_within_a_margin(shift, verdict):
    values = np.array([0.1, -0.1, 0.2, -0.2, 0.1, -0.1, 0.1, -0.1])  # std 0.14, so t 1.895 gives a limit of 0.097
    margin = 0.15 if abs(shift) == 0.09 else 0.4
    (found,) = compare([sample("a", values + shift), sample("b", np.zeros(8))], margin)
    assert found.verdict == verdict
    losses = [sample(name, loss, metric="test/loss") for name, loss in (("b", values + shift), ("a", np.zeros(8)))]
    (loss,) = compare(losses, margin)
    if "worse" in verdict:  # the lower loss is the better one
        assert loss.verdict == verdict


def test_every_accuracy_is_shown_in_percent():
    shown = {"val/acc": "94.01", "test/acc_tta": "94.01", "test/loss": "0.9401"}
    assert {metric: number(metric, 0.9401) for metric in shown} == shown
    assert [unit(metric) for metric in ("test/acc_tta", "test/loss")] == [", percent", ""]


def test_seeds_that_came_after_a_first_comparison_are_no_plain_evidence():
    answers = np.random.default_rng(0).random((8, 50)) < 0.5
    (found,) = compare([answered("a", *answers, later=[6, 7]), answered("b", *answers[::-1])])
    assert found.verdict == "no clear difference (but seeds were added after a first comparison)"
    (found,) = compare([answered("a", *answers, later=[6, 7]), answered("b", *answers[5::-1])])  # has seeds 0 to 5
    assert found.n == 6
    assert not found.later


def test_enough_seeds_and_no_clear_difference_promise_nothing():
    values = np.array([0.0, 2.0, -1.0, 3.0, 1.0, -2.0, 4.0, 1.0])  # mean 1, std 2
    (found,) = compare([sample("a", values), sample("b", np.zeros(8))])
    assert not found.significant
    assert found.verdict == "no clear difference"


def test_equal_samples_have_no_difference():
    values = [0.5, 0.25, 0.75, 0.5, 0.25, 0.75]
    (found,) = compare([sample("a", values), sample("b", values)])
    assert (found.mean, found.p, found.ci) == (0, 1, (0, 0))
    assert found.verdict == "no clear difference"


def test_p_values_are_adjusted_for_the_number_of_pairs():
    # Holm: of p = 2/64 (a-b), 2/64 (a-c) and 1 (b-c) the two smallest are both times 3
    low = [1, 2, 3, 4, 5, 6]
    found = compare([sample("a", [2, 4, 6, 8, 10, 12]), sample("b", low), sample("c", low)])
    assert [difference.p for difference in found] == pytest.approx([6 / 64, 6 / 64, 1])
    # the smallest p of six seeds, times 3, is too large; seven would make 3 * 2 / 2**7 = 0.047
    assert [difference.verdict for difference in found] == ["n is too small for p < 0.05"] * 3


def test_a_pair_that_can_not_be_tested_does_not_count_in_the_adjustment():
    low = [1, 2, 3, 4, 5, 6]
    found = compare([sample("a", [2, 4, 6, 8, 10, 12]), sample("b", low), sample("c", [9])])
    assert found[0].p == 2 / 64
    assert np.isnan([found[1].p, found[2].p]).all()


def test_the_same_input_gives_the_same_figures_twice():
    random = np.random.default_rng(0)
    samples = [sample(name, random.normal(size=20)) for name in "ab"]
    assert compare(samples) == compare(samples)


@pytest.mark.parametrize("different", ["metric", "data", "split"])
def test_what_was_measured_on_other_images_or_otherwise_is_not_compared(different):
    with pytest.raises(UserError, match=f"a and b can't be compared: {different} .* and other"):
        compare([sample("a", [1, 2]), sample("b", [1, 2], **{different: "other"})])
