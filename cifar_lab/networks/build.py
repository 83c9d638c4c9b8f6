"""Networks from configs."""

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
    """The network of `config` with weights from torch's generator and whitening from the images of `dataset`."""
    model = make_network(config, len(dataset.classes), dataset.mean, dataset.std)
    if isinstance(model, CNN):
        train, _ = split_train(dataset.labels["train"], config.data)
        some = train[:: max(1, len(train) // 5000)]  # all classes, even if the images are ordered by class
        images = torch.from_numpy(dataset.images["train"][some])
        filters = whitening_filters(model.normalise(images).permute(0, 3, 1, 2), len(model.whitening) // 2)
        model.whitening.copy_(filters)
    return model


def make_network(
    config: Config, classes: int, mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3
) -> Classifier:
    """The network of `config` with weights from torch's generator and a whitening of zeros."""
    common = (config.optim, mean, std, classes, config.model.one_vs_one)
    if not isinstance(config.model, CNNConfig):
        return LogisticRegression(*common)
    return CNN(*common, **{name: getattr(config.model, name) for name in ("directions", "widths", "depth")})


class Predictor(nn.Module):
    """From (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities.

    The images are resized to `side` pixels, the last side that the network was trained with.
    """

    def __init__(self, classifier: Classifier, side: int) -> None:
        super().__init__()
        self.classifier, self.side = classifier, side

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(resize(images, self.side)).softmax(1)
