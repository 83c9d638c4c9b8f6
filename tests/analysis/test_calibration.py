import numpy as np
import pytest
from sklearn import metrics

from cifar_lab.analysis.calibration import fit_temperature, foreign_auroc, reliability, scaled, scores


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


THREE_OF_FOUR = np.tile([0.9, 0.1], (4, 1)), np.array([0, 0, 0, 1])


def test_scores_worked_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32)
    found = scores(probabilities, np.array([0, 0]))
    assert found.keys() == {"acc", "nll", "brier", "ece"}
    assert found["acc"] == 0.5
    assert found["nll"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert found["brier"] == pytest.approx((0.25 + 2 * 0.0625 + 0.75**2 + 0.25 + 0.0625) / 2)
    assert found["nll"] == pytest.approx(metrics.log_loss([0, 0], probabilities, labels=[0, 1, 2]))


def test_a_temperature_of_two_makes_probabilities_of_nine_tenths_come_true():
    probabilities, labels = THREE_OF_FOUR
    assert fit_temperature(probabilities, labels) == pytest.approx(2, abs=1e-4)  # ln 9 = 2 ln 3
    np.testing.assert_allclose(scaled(probabilities, 2), np.tile([0.75, 0.25], (4, 1)))
    found = scores(probabilities, labels, 2)
    assert found["ece"] == pytest.approx(0.15)
    assert found["ece_scaled"] == pytest.approx(0)
    assert found["nll_scaled"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert found["brier_scaled"] == pytest.approx(0.75 * 2 * 0.25**2 + 0.25 * 2 * 0.75**2)
    assert found["nll_scaled"] < found["nll"]


def test_impossible_labels_and_certain_answers_stay_finite():
    certain = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    assert 40 < scores(certain, np.array([0, 1]))["nll"] < 50
    assert fit_temperature(certain, np.array([0, 1])) == pytest.approx(100, rel=0.01)  # the softest
    assert fit_temperature(certain, np.array([0, 0])) < 1


def test_foreign_images_are_told_by_their_top_probability():
    known, foreign = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.3, 0.7], [0.5, 0.5]])
    assert foreign_auroc(known, foreign) == 0.75  # of four pairs only 0.6 and 0.7 are the wrong way round
    assert foreign_auroc(known, known) == 0.5
