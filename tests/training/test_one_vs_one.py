from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsOneClassifier

from cifar_lab.sections import MuonConfig
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.one_vs_one import PairwiseCoupling, count_pairs

SCORES = torch.tensor([[2.0, -1.0, 0.5, 1.5, -2.0, 0.1], [0.3, 3.0, -0.2, 0.7, 0.0, -1.0]])  # of the pairs of 4 classes


def test_pairs_of_known_probabilities_give_them_back():
    probabilities = torch.distributions.Dirichlet(torch.ones(5)).sample((7,))
    scores = [(probabilities[:, i] / probabilities[:, j]).log() for i, j in combinations(range(5), 2)]
    torch.testing.assert_close(PairwiseCoupling(5)(torch.stack(scores, 1)).exp(), probabilities, rtol=1e-4, atol=1e-5)


def test_contradicting_pairs_give_the_probabilities_that_fit_them_best():
    """The objective of Wu, Lin and Weng (2004), equation 18, minimised by scipy."""
    for row, scores in zip(PairwiseCoupling(4)(SCORES).exp().double().numpy(), SCORES.double().numpy(), strict=True):
        wins = np.zeros((4, 4))
        for (i, j), score in zip(combinations(range(4), 2), scores, strict=True):
            wins[i, j], wins[j, i] = 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(score))

        def contradiction(p, wins=wins):
            return sum((wins[j, i] * p[i] - wins[i, j] * p[j]) ** 2 for i, j in combinations(range(4), 2))

        total = {"type": "eq", "fun": lambda p: p.sum() - 1}
        best = minimize(contradiction, np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=[total], tol=1e-12)
        np.testing.assert_allclose(row, best.x, atol=1e-4)


def test_loss_and_errors_of_an_image_are_of_the_pairs_of_its_class_alone():
    coupling, labels = PairwiseCoupling(4), torch.tensor([0, 2])
    own = [[2.0, -1.0, 0.5], [-3.0, -0.7, -1.0]]  # pairs 01 02 03, and 02 12 23 seen from class 2
    for smoothing in (0.0, 0.2):
        wrong = smoothing / 2
        losses = [[(1 - wrong) * np.log1p(np.exp(-z)) + wrong * np.log1p(np.exp(z)) for z in row] for row in own]
        assert coupling.loss(SCORES, labels, smoothing).item() == pytest.approx(np.sum(losses) / 2)
    expected = [[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    assert coupling.errors(SCORES, labels).tolist() == expected


def test_an_image_trains_only_the_pairs_of_its_class():
    scores = SCORES.clone().requires_grad_()
    PairwiseCoupling(4).loss(scores, torch.tensor([1, 1]), 0.0).backward()
    trained = [1 in pair for pair in combinations(range(4), 2)]
    assert (scores.grad != 0).tolist() == [trained, trained]


class Linear(Classifier):
    """A linear classifier of inputs that are not images."""

    def __init__(self, inputs, classes):
        network = torch.nn.Linear(inputs, count_pairs(classes))
        super().__init__(network, MuonConfig(), (0.5,) * 3, (0.5,) * 3, classes, True)

    def scores(self, inputs):
        return self.network(inputs)


def test_trained_pairs_are_those_of_scikit_learn():
    classes, generator = 4, np.random.default_rng(0)
    labels = np.arange(200) % classes
    inputs = generator.normal(size=(200, 3)) + generator.normal(size=(classes, 3))[labels]
    reference = OneVsOneClassifier(LogisticRegression(C=np.inf, tol=1e-8)).fit(inputs, labels)
    model, x, y = Linear(3, classes), torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = model.coupling.loss(model.scores(x), y, 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert model.outputs == count_pairs(classes) == len(reference.estimators_)
    for weights, estimator in zip(model.network.weight.detach().numpy(), reference.estimators_, strict=True):
        np.testing.assert_allclose(-weights, estimator.coef_[0], rtol=0.02, atol=0.02)  # second class is positive there
    agreement = (model(x).argmax(1).numpy() == reference.predict(inputs)).mean()
    assert agreement > 0.95  # coupled there by votes
