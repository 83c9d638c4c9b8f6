"""The networks: layers and forward. Classifier holds what they share: one step, metrics, optimiser."""

import itertools
import time

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from cifar_lab.config import CNNConfig, Config, OptimConfig, UserError
from cifar_lab.datasets import Dataset
from cifar_lab.optim import make_optimizer, make_schedule

Batch = tuple[Tensor, Tensor]


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


class Classifier(LightningModule):
    """From (b, 32, 32, 3) uint8 images to (b, classes) logits; normalises by channel `mean` and `std` itself.

    Logs `{train,val,test}/{loss,acc}`, `lr` and `epoch_seconds`, the time of training alone, once per epoch.
    Keeps the counts of each stage's last epoch in `confusion[stage]`, (classes, classes), rows true, columns predicted.
    Raises NonFiniteLoss, which names epoch and step, at the end of the epoch in which it happened.
    """

    def __init__(self, optim: OptimConfig, mean: tuple[float, ...], std: tuple[float, ...], classes: int) -> None:
        super().__init__()
        self.optim, self.classes = optim, classes
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("std", 255 * torch.tensor(std))
        self.confusion: dict[str, Tensor] = {}
        self.losses: dict[str, list[Tensor]] = {}

    def normalise(self, images: Tensor) -> Tensor:
        """(b, 32, 32, 3) uint8 to float32 with mean 0 and standard deviation 1 per channel."""
        return (images - self.mean) / self.std

    def step(self, batch: Batch, stage: str) -> Tensor:
        """Cross-entropy of one batch; adds to the stage's losses and confusion counts."""
        images, labels = batch
        logits = self(images).float()
        smoothing = self.optim.label_smoothing if stage == "train" else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        pairs = torch.bincount(labels * self.classes + logits.argmax(1), minlength=self.classes**2)
        self.confusion[stage] += pairs.view(self.classes, self.classes)
        self.losses[stage].append(loss.detach() * len(labels))
        return loss

    def start_stage(self, stage: str) -> None:
        self.losses[stage] = []
        self.confusion[stage] = torch.zeros(self.classes, self.classes, dtype=torch.int64, device=self.device)

    def total_loss(self, stage: str) -> Tensor:
        losses = torch.stack(self.losses[stage])
        if not losses.isfinite().all():
            step = int(losses.isfinite().logical_not().nonzero()[0])
            where = f"epoch {self.current_epoch + 1}, step {step + 1} of {len(losses)}"
            raise NonFiniteLoss(f"{stage} loss is {losses[step].item()} at {where}; try a smaller learning rate")
        return losses.sum()

    def end_stage(self, stage: str) -> None:
        count = self.confusion[stage].sum()
        values = {
            f"{stage}/loss": self.total_loss(stage) / count,
            f"{stage}/acc": self.confusion[stage].trace() / count,
        }
        if stage == "train":
            values |= {"lr": self.lr_schedulers().get_last_lr()[0], "epoch_seconds": self.epoch_seconds}
        self.log_dict(values)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Batch, index: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        self.step(batch, "test")

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()
        self.start_stage("train")

    def on_validation_epoch_start(self) -> None:
        self.total_loss("train")  # of a broken training the first broken step is what to report
        self.epoch_seconds = time.perf_counter() - self.started  # of training alone
        self.start_stage("val")

    def on_test_epoch_start(self) -> None:
        self.start_stage("test")

    def on_train_epoch_end(self) -> None:
        self.end_stage("train")

    def on_validation_epoch_end(self) -> None:
        self.end_stage("val")

    def on_test_epoch_end(self) -> None:
        self.end_stage("test")

    def configure_optimizers(self) -> dict:
        optimizer = make_optimizer(self, self.optim)
        schedule = make_schedule(optimizer, self.optim, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LogisticRegression(Classifier):
    """Multinomial logistic regression on the 3,072 normalised pixel values."""

    def __init__(self, optim: OptimConfig, mean: tuple[float, ...], std: tuple[float, ...], classes: int) -> None:
        super().__init__(optim, mean, std, classes)
        self.head = nn.Linear(32 * 32 * 3, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.normalise(images).flatten(1))


class CNN(Classifier):
    """Three stages of `depth` 3x3 convolutions with `width`, 2 `width`, 4 `width` channels; each halves the image."""

    def __init__(
        self,
        optim: OptimConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        width: int = 16,
        depth: int = 2,
    ) -> None:
        super().__init__(optim, mean, std, classes)
        channels = [3, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(after),
                nn.GELU(),
            ]
            for _ in range(depth - 1):
                layers += [nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten())  # 4x4 is what three halvings leave
        self.head = nn.Linear(channels[-1], classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(self.normalise(images).permute(0, 3, 1, 2)))


def make_model(config: Config, dataset: Dataset) -> Classifier:
    """The network of `config` for the classes and pixel statistics of `dataset`, from torch's generator."""
    common = (config.optim, dataset.mean, dataset.std, len(dataset.classes))
    if isinstance(config.model, CNNConfig):
        return CNN(*common, width=config.model.width, depth=config.model.depth)
    return LogisticRegression(*common)


class Probabilities(nn.Module):
    """What is served: (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).softmax(1)
