"""The classification networks of torchvision, by their names, untrained."""

import torchvision
from pydantic import field_validator
from torch import Tensor, nn

from cifar_lab.config import ModelConfig


class Config(ModelConfig):
    """A network of torchvision.models, such as "resnet18"; those for 224 pixels get a stem for small images."""

    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ValueError(f"model.name = {name!r}: torchvision has {', '.join(known)}")
        return name


class Network(nn.Module):
    """ResNets, ShuffleNets, MobileNets and EfficientNets get a stem that keeps the side; others are as they are.

    A stride of 2 in the first convolution becomes 1, and a pooling after it is left out.
    """

    def __init__(self, config: Config, outputs: int) -> None:
        super().__init__()
        auxiliary = {"aux_logits": False} if config.name in ("googlenet", "inception_v3") else {}
        self.network = torchvision.models.get_model(config.name, weights=None, num_classes=outputs, **auxiliary)
        if isinstance(getattr(self.network, "maxpool", None), nn.MaxPool2d):
            self.network.maxpool = nn.Identity()
        if isinstance(self.network, torchvision.models.ResNet):
            self.network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        else:
            first = next((module for module in self.network.modules() if isinstance(module, nn.Conv2d)), None)
            if first is not None and first.stride == (2, 2) and first.kernel_size == (3, 3):
                first.stride = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
