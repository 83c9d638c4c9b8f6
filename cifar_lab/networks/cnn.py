"""A convolutional network for small images."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cifar_lab.config import ModelConfig, Size

HEAD_SCALE = 30  # lets one learning rate suit the weights of the head and the shifts of batch norm


class Config(ModelConfig):
    """Whitened 2x2 patches, then three blocks of `depth` 3x3 convolutions; `widths` are their channels."""

    directions: int = Field(12, ge=1, le=12, description="principal directions of a patch; two channels each")
    widths: tuple[Size, Size, Size] = Field((64, 256, 256), strict=False)
    depth: int = Field(2, ge=1, le=100)
    bias: bool = Field(False, description="train a bias of the whitened patches")


class Network(nn.Module):
    """Whitened 2x2 patches, three blocks of `depth` 3x3 convolutions, a global maximum, a linear head.

    The filters of the first layer are fixed (see whitening_filters); its bias, if it has one, starts at 0. Each block
    halves the image; its filters start as the identity. Batch norm shifts but does not scale. After Keller Jordan,
    "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv 2404.00498.
    """

    whitening: Tensor

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.zeros(2 * config.directions, 3, 2, 2))
        self.bias = nn.Parameter(torch.zeros(2 * config.directions)) if config.bias else None
        layers: list[nn.Module] = []
        before = 2 * config.directions
        for width in config.widths:
            layers += [identity_convolution(before, width), nn.MaxPool2d(2), shift_norm(width), nn.SiLU()]
            for _ in range(config.depth - 1):
                layers += [identity_convolution(width, width), shift_norm(width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, outputs, bias=False)
        nn.init.normal_(self.head.weight)

    def initialise(self, images: Tensor) -> None:
        self.whitening.copy_(whitening_filters(images, len(self.whitening) // 2))

    def forward(self, images: Tensor) -> Tensor:
        x = F.silu(F.conv2d(images, self.whitening, self.bias))
        return self.head(self.features(x).amax((2, 3))) / HEAD_SCALE


def identity_convolution(before: int, after: int) -> nn.Conv2d:
    """A 3x3 convolution whose first `before` outputs start as copies of its inputs."""
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:before])
    return convolution


def shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a trainable shift and a fixed scale."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images: Tensor, directions: int = 12, eps: float = 5e-4) -> Tensor:
    """Filters whose responses to 2x2 patches of `images`, (n, 3, height, width), are uncorrelated with equal variance.

    (2 directions, 3, 2, 2) float32: the eigenvectors of the patches' second moments by descending eigenvalue, each
    divided by the root of its eigenvalue plus `eps`; then their negatives.
    """
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    filters = (vectors / (values + eps).sqrt()).T.flip(0)[:directions].float().reshape(-1, 3, 2, 2)
    return torch.cat([filters, -filters])
