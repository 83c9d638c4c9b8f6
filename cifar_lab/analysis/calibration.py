"""Calibration of predicted probabilities: pure numpy."""

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Number, mean confidence and accuracy of the predictions in each bin of confidence, each (bins,).

    Confidence and accuracy are nan for an empty bin. `ece` is the expected calibration error, from 0 to 1.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Reliability of (n, classes) probabilities for (n,) labels, in `bins` bins of equal width.

    Method: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    index = np.minimum(np.ceil(confidence * bins).astype(int) - 1, bins - 1).clip(0)  # a bin includes its upper end
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means, accuracy = (np.bincount(index, values, bins) / counts for values in (confidence, correct))
    gaps = np.abs(means - accuracy)[counts > 0]
    return Reliability(counts, means, accuracy, float((counts[counts > 0] * gaps).sum() / len(labels)))
