"""Multinomial logistic regression."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.config import ModelConfig


class Config(ModelConfig):
    """Multinomial logistic regression on the 3,072 pixel values."""

    fixed_side = True


class Network(nn.Module):
    """Multinomial logistic regression on the 3,072 normalised pixel values."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(32 * 32 * 3, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.permute(0, 2, 3, 1).flatten(1))

    def forward_pixels(self, images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """`forward` of (b, 32, 32, 3) uint8 images: normalises the weights, which are fewer than the pixels."""
        mean, scale = mean.repeat(32 * 32), scale.repeat(32 * 32)
        weight = self.head.weight * scale
        return F.linear(images.flatten(1).float(), weight, self.head.bias - weight @ mean)
