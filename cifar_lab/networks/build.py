"""The network that a config asks for."""

import torch
from torch import Tensor, nn

from cifar_lab.config import CNNConfig, Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_train
from cifar_lab.networks.cnn import CNN, whitening_filters
from cifar_lab.networks.linear import LogisticRegression
from cifar_lab.training.augmentation import resize
from cifar_lab.training.classifier import Classifier


def make_model(config: Config, dataset: Dataset) -> Classifier:
    """The network of `config` for the classes and training images of `dataset`, from torch's generator."""
    model = make_network(config, len(dataset.classes), dataset.mean, dataset.std)
    if isinstance(model, CNN):
        train, _ = split_train(dataset.labels["train"], config.data)
        some = train[:: max(1, len(train) // 5000)]  # of all classes, also where the images are ordered by class
        images = torch.from_numpy(dataset.images["train"][some])
        model.whitening.copy_(whitening_filters(model.normalise(images).permute(0, 3, 1, 2), config.model.directions))
    return model


def make_network(
    config: Config, classes: int, mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3
) -> Classifier:
    """The network of `config`, its weights from torch's generator, its whitening zero."""
    common = (config.optim, mean, std, classes, config.model.one_vs_one)
    if not isinstance(config.model, CNNConfig):
        return LogisticRegression(*common)
    return CNN(*common, **{name: getattr(config.model, name) for name in ("directions", "widths", "depth")})


class Probabilities(nn.Module):
    """What is served: (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities.

    The network sees them with `side` pixels, as at the end of its training.
    """

    def __init__(self, classifier: Classifier, side: int) -> None:
        super().__init__()
        self.classifier, self.side = classifier, side

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(resize(images, self.side)).softmax(1)
