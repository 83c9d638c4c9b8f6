import numpy as np
import pytest

from cifar_lab.analysis.calibration import reliability


def test_four_predictions_worked_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45], [0.4, 0.6]])
    found = reliability(probabilities, np.array([0, 0, 0, 1]), bins=5)  # correct, wrong, correct, correct
    assert found.counts.tolist() == [0, 0, 2, 1, 1]  # 0.55 and 0.6, 0.8, 0.9
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.575, 0.8, 0.9])
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 1, 0, 1])
    assert found.ece == pytest.approx((2 * 0.425 + 0.8 + 0.1) / 4)


def test_probabilities_that_come_true_are_calibrated():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(4, 0.5), 20000)
    labels = (probabilities.cumsum(axis=1) < generator.random((20000, 1))).sum(axis=1)
    assert reliability(probabilities, labels).ece < 0.02
    sharper = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert reliability(sharper, labels).ece > 0.1


def test_certainty_lies_in_the_last_bin():
    found = reliability(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    assert found.counts.tolist() == [0] * 14 + [2]
    assert found.ece == 0.5
