"""A multilayer perceptron."""

from pydantic import Field
from torch import Tensor, nn

from cifar_lab.config import ModelConfig, Size


class Config(ModelConfig):
    """Fully connected layers on the pixels."""

    fixed_side = True
    widths: tuple[Size, ...] = Field((512, 256), strict=False, min_length=1, description="units of the hidden layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the hidden units that is dropped in training")


class Network(nn.Module):
    """Linear layers with ReLU and dropout between them."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        before = 3 * 32 * 32
        for width in config.widths:
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(config.dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
