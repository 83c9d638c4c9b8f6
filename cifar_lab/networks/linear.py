"""Multinomial logistic regression."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.training.classifier import Classifier


class LogisticRegression(Classifier):
    """Multinomial logistic regression on the 3,072 normalised pixel values.

    The normalisation is folded into the weights, which are fewer than the pixels of a batch.
    """

    def __init__(self, *common: Any) -> None:
        super().__init__(*common)
        self.head = nn.Linear(32 * 32 * 3, self.outputs)

    def scores(self, images: Tensor) -> Tensor:
        mean, scale = self.mean.repeat(32 * 32), self.scale.repeat(32 * 32)
        weight = self.head.weight * scale
        return F.linear(images.flatten(1).float(), weight, self.head.bias - weight @ mean)
