import math

import pytest

from cifar_lab.comparison import summarise


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
