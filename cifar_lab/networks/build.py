"""Networks from configs, and what a network file has to define."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cifar_lab import network_files
from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_train
from cifar_lab.errors import UsageError
from cifar_lab.training.augmentation import resize
from cifar_lab.training.captured import CapturedClassifier
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.one_vs_one import count_pairs

SAMPLE = 5000  # training images for a network's `initialise`, about


def make_model(config: Config, dataset: Dataset) -> Classifier:
    """The network of `config` with weights from torch's generator, initialised with training images of `dataset`."""
    model = make_network(config, len(dataset.classes), dataset.mean, dataset.std)
    if initialise := getattr(model.network, "initialise", None):
        train, _ = split_train(dataset.labels["train"], config.data)
        some = train[:: max(1, len(train) // SAMPLE)]  # all classes, even if the images are ordered by class
        images = torch.from_numpy(dataset.images["train"][some])
        initialise(model.normalise(images).permute(0, 3, 1, 2))
    return model


def make_network(
    config: Config, classes: int, mean: Sequence[float] = (0.0,) * 3, std: Sequence[float] = (1.0,) * 3
) -> Classifier:
    """The network of `config` with weights from torch's generator, not initialised with images.

    The class `Network` of a network file is an nn.Module. `__init__(config, outputs)` gets the file's `Config`, and
    `forward` turns normalised (b, 3, side, side) float32 images into (b, outputs) scores. It may define:
    - `initialise(images)`, called once, before training, with about 5,000 normalised training images;
    - `forward_pixels(images, mean, scale)`, used instead of `forward`, if it is faster to normalise on the way:
      (b, side, side, 3) uint8 images, and (3,) so that `(images - mean) * scale` is normalised.
    Beside the class, the file may define `augment(images, labels, generator)`, called with every training batch: from
    (b, 3, 32, 32) uint8 to the same. Its draws follow (seed, epoch) if they come from `generator`, which is on the CPU,
    or from torch's own generators.
    """
    section = config.model
    outputs = count_pairs(classes) if section.one_vs_one else classes
    network = network_files.load(section.kind, section.source).Network(section, outputs)
    kind = CapturedClassifier if config.trainer.captured else Classifier
    return kind(network, config.optim, mean, std, classes, section.one_vs_one)


def check_network(config: Config, dataset: Dataset) -> None:
    """Try the network of `config` on two images, if its code is not of this package, and its file's `augment`.

    Raises UsageError, with the file's line.
    """
    section = config.model
    if section.source:
        name = f"{network_files.FOLDER}/{section.kind}.py"
    elif section.kind == "torchvision":  # some need larger images
        name = f"model.name = {config.flat()['model.name']!r}"
    else:
        return
    images = torch.from_numpy(dataset.images["train"][:2])
    with torch.random.fork_rng(devices=[]):
        try:
            model = make_model(config, dataset).train()
            outputs = model.outputs
            if augment := vars(network_files.load(section.kind, section.source)).get("augment"):
                pixels = images.permute(0, 3, 1, 2)
                changed = augment(pixels, torch.zeros(2, dtype=torch.int64), torch.Generator())
                if (changed.shape, changed.dtype) != (pixels.shape, pixels.dtype):
                    got = f"{tuple(changed.shape)} {changed.dtype}"
                    raise UsageError(f"{name}: augment gives {got}, not {tuple(pixels.shape)} {pixels.dtype}")
            for side in sorted({*config.data.sides}):
                scores = model.scores(resize(images, side))
            loss = scores.float().logsumexp(1).mean()
            if scores.shape != (2, outputs):
                raise UsageError(f"{name}: forward gives {tuple(scores.shape)} for 2 images, not (2, {outputs})")
            loss.backward()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(network_files.explain(error, name)) from None
    if odd := {str(p.dtype) for p in model.parameters()} - {"torch.float32"}:
        raise UsageError(f"{name}: there are parameters of {', '.join(sorted(odd))}; use torch.float32")
    if not loss.isfinite():
        raise UsageError(f"{name}: the scores of the first two images are not finite")
    if not any(p.grad is not None for p in model.parameters()):
        raise UsageError(f"{name}: no parameter can be trained")


class Predictor(nn.Module):
    """From (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities.

    The images are resized to `side` pixels, the last side that the network was trained with.
    """

    def __init__(self, classifier: Classifier, side: int) -> None:
        super().__init__()
        self.classifier, self.side = classifier, side

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(resize(images, self.side)).softmax(1)
