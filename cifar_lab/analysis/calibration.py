"""How good predicted probabilities are: numpy, scipy and scikit-learn."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from sklearn.metrics import roc_auc_score

BINS = 15
SMALLEST = float(np.finfo(np.float32).tiny)  # of a probability in a logarithm
COLDEST, HOTTEST = 0.01, 100.0  # temperatures


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


def log_likelihood_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """NLL, the mean negative log-likelihood of (n,) labels under (n, classes) probabilities, in nats.

    A probability of zero counts as the smallest normal float32, 1.2e-38.
    """
    likelihoods = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(likelihoods.clip(SMALLEST)).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the squared error summed over classes (Brier, 1950): from 0 to 2."""
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(axis=1).mean())


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n, classes) probabilities whose logarithms are divided by `temperature`, as float64; above 1 they get softer."""
    return special.softmax(np.log(probabilities.astype(np.float64).clip(SMALLEST)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature from 0.01 to 100 with the lowest NLL (Guo et al., 2017, scipy.optimize.minimize_scalar)."""

    def loss(log_temperature: float) -> float:
        return log_likelihood_loss(scaled(probabilities, np.exp(log_temperature)), labels)

    found = optimize.minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), options={"xatol": 1e-6})
    return float(np.exp(found.x))


def scores(probabilities: np.ndarray, labels: np.ndarray, temperature: float = np.nan) -> dict[str, float]:
    """acc, nll, brier and ece; with a temperature also nll_scaled, brier_scaled and ece_scaled."""
    found = {"acc": float((probabilities.argmax(axis=1) == labels).mean()), **_calibration(probabilities, labels)}
    if np.isfinite(temperature):
        softer = _calibration(scaled(probabilities, temperature), labels)
        found |= {f"{name}_scaled": value for name, value in softer.items()}
    return found


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "nll": log_likelihood_loss(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "ece": reliability(probabilities, labels).ece,
    }


def foreign_auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """AUROC of the top probability, which should be higher for known images than for foreign ones.

    known, foreign: (n, classes) probabilities. 0.5 is guessing. Method: Hendrycks and Gimpel, "A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples in Neural Networks", 2017, arXiv 1610.02136.
    """
    top = np.concatenate([known.max(axis=1), foreign.max(axis=1)])
    return float(roc_auc_score(np.arange(len(top)) < len(known), top))
