"""One-vs-one: a two-class problem per pair of classes, and their coupling into one classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1e-9  # probability, before its logarithm


def count_pairs(classes: int) -> int:
    """The number of pairs of classes."""
    return classes * (classes - 1) // 2


class PairwiseCoupling(nn.Module):
    """From (b, pairs) scores to (b, classes) log-probabilities.

    A score is the logit of a pair's first class against its second; pairs are ordered as by itertools.combinations.
    Method: Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise coupling", JMLR 5, 2004,
    the second approach (that of LIBSVM), solved as the linear system of its optimality conditions.
    """

    pair: Tensor  # (classes, classes) int64: index of the pair of two classes
    sign: Tensor  # (classes, classes): 1 above the diagonal, 0 on it, -1 below

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, 1)
        pair = torch.zeros(classes, classes, dtype=torch.int64)
        pair[first, second] = pair[second, first] = torch.arange(count_pairs(classes))
        ones = torch.ones(classes, classes)
        self.register_buffer("pair", pair, persistent=False)
        self.register_buffer("sign", ones.triu(1) - ones.tril(-1), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        classes = len(self.pair)
        wins = torch.sigmoid(scores[:, self.pair] * self.sign) * self.sign.abs()  # probability of row against column
        system = torch.diag_embed((wins**2).sum(1)) - wins * wins.mT
        system = F.pad(F.pad(system, (0, 1, 0, 0), value=1.0), (0, 0, 0, 1), value=1.0)  # the sum is 1
        system = system * (1 - F.pad(system.new_ones(1, 1), (classes, 0, classes, 0)))
        right_side = F.pad(system.new_ones(1, 1), (0, 0, classes, 0)).expand(len(scores), -1, -1)
        solution = torch.linalg.solve_ex(system, right_side).result  # nan gives nan instead of an error
        return solution[:, :classes, 0].clamp_min(SMALLEST).log()

    def own_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(b, classes): the logit of each image's true class against every class, 0 against itself."""
        return scores.gather(1, self.pair[labels]) * self.sign[labels]

    def loss(self, scores: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Binary cross-entropy summed over the pairs that contain an image's class; mean over images.

        The target of the other class is `smoothing` / 2.
        """
        own = self.own_scores(scores, labels)
        losses = F.binary_cross_entropy_with_logits(own, torch.full_like(own, 1 - smoothing / 2), reduction="none")
        return (losses * self.sign[labels].abs()).sum(1).mean()

    def errors(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(classes, classes) int64: images of the row's class that are misclassified by its pair with the column's."""
        lost = self.own_scores(scores, labels) < 0
        return torch.zeros_like(self.pair).index_add_(0, labels, lost.long())
