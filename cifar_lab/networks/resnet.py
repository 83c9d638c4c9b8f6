"""Residual networks for small images: He, Zhang, Ren and Sun, "Deep Residual Learning", CVPR 2016, section 4.2."""

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from cifar_lab.config import ModelConfig, Size


class Config(ModelConfig):
    """A 3x3 convolution, three stages of residual blocks, a global average, a linear head."""

    depth: int = Field(20, ge=8, le=1202, description="layers with weights: 6n + 2, with n blocks per stage")
    width: Size = Field(16, description="channels of the first stage; each further stage has twice as many")

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 2:
            raise ValueError(f"model.depth = {depth}: a residual network has 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110")
        return depth


class Network(nn.Module):
    """The paper's network for CIFAR-10, with its option A: shortcuts have no parameters."""

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        before = config.width
        self.stem = nn.Conv2d(3, before, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(before)
        blocks = []
        for stage in range(3):
            for block in range((config.depth - 2) // 6):
                width = config.width << stage
                blocks.append(Block(before, width, 2 if stage and not block else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(images)))).mean((2, 3)))


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut: every `stride`-th pixel, with channels of zeros added."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(y + shortcut)
