"""The networks: layers and forward. Classifier holds what they share: one step, metrics, optimiser."""

import time

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from cifar_lab.config import CNNConfig, Config, OptimConfig, UserError
from cifar_lab.datamodule import reflect_border, split_train
from cifar_lab.datasets import Dataset
from cifar_lab.optim import make_optimizer, make_schedule

Batch = tuple[Tensor, Tensor]
HEAD_SCALE = 30  # makes one learning rate suit the weights of the head and the shifts of batch norm


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


class Classifier(LightningModule):
    """From (b, 32, 32, 3) uint8 images to (b, classes) logits; normalises by channel `mean` and `std` itself.

    Once per epoch it logs `{train,val,test}/{loss,acc}`, `lr` (of SGD) and `epoch_seconds`, the time of training alone;
    with `tta` also `test/acc_tta`, with test-time augmentation.
    Keeps the counts of each stage's last epoch in `confusion[stage]`, (classes, classes), rows true, columns predicted.
    Raises NonFiniteLoss, which names epoch and step, at the end of the epoch in which it happened.
    """

    def __init__(self, optim: OptimConfig, mean: tuple[float, ...], std: tuple[float, ...], classes: int) -> None:
        super().__init__()
        self.optim, self.classes, self.tta = optim, classes, False
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.confusion: dict[str, Tensor] = {}
        self.losses: dict[str, list[Tensor]] = {}

    def normalise(self, images: Tensor) -> Tensor:
        """(b, height, width, 3) uint8 to float32 with mean 0 and standard deviation 1 per channel."""
        rows = images.flatten(2)  # the channels' mean and scale, repeated along a row: three at a time would be slow
        repeats = images.shape[2]
        return ((rows - self.mean.repeat(repeats)) * self.scale.repeat(repeats)).view_as(images)

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
        if stage == "test" and self.tta:
            values["test/acc_tta"] = self.right / count
        self.log_dict(values)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Batch, index: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        self.step(batch, "test")
        if self.tta:
            images, labels = batch
            self.right += (self.augmented_logits(images).argmax(1) == labels).sum()

    def augmented_logits(self, images: Tensor) -> Tensor:
        """Mean logits of images and mirror images: half as they are, a quarter each shifted up left and down right."""
        padded = reflect_border(reflect_border(images, 1, 1), 1, 2)
        views = [(images, 0.25), (padded[:, 2:, 2:], 0.125), (padded[:, :-2, :-2], 0.125)]
        return sum(weight * (self(view).float() + self(view.flip(2)).float()) for view, weight in views)

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()
        self.start_stage("train")

    def end_training(self) -> None:
        self.total_loss("train")  # of a broken training the first broken step is what to report
        self.epoch_seconds = time.perf_counter() - self.started  # of training alone

    def on_validation_epoch_start(self) -> None:
        self.end_training()
        self.start_stage("val")

    def on_test_epoch_start(self) -> None:
        self.right = torch.zeros((), device=self.device)
        self.start_stage("test")

    def on_train_epoch_end(self) -> None:
        if not self.trainer.enable_validation:
            self.end_training()
        self.end_stage("train")

    def on_validation_epoch_end(self) -> None:
        self.end_stage("val")

    def on_test_epoch_end(self) -> None:
        self.end_stage("test")

    def configure_optimizers(self) -> dict:
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
        optimizer = make_optimizer(self, self.optim, dtype)
        schedule = make_schedule(optimizer, self.optim, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LogisticRegression(Classifier):
    """Multinomial logistic regression on the 3,072 normalised pixel values.

    The normalisation is applied to the weights, of which there are fewer than pixels in a batch.
    """

    def __init__(self, optim: OptimConfig, mean: tuple[float, ...], std: tuple[float, ...], classes: int) -> None:
        super().__init__(optim, mean, std, classes)
        self.head = nn.Linear(32 * 32 * 3, classes)

    def forward(self, images: Tensor) -> Tensor:
        mean, scale = self.mean.repeat(32 * 32), self.scale.repeat(32 * 32)
        weight = self.head.weight * scale
        return F.linear(images.flatten(1).float(), weight, self.head.bias - weight @ mean)


class CNN(Classifier):
    """Whitened 2x2 patches, three blocks of `depth` 3x3 convolutions that each halve the image, the maximum, a head.

    The first layer is fixed (see whitening_filters); a block's filters begin as the identity of their first inputs;
    batch norm shifts but does not scale. After Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024,
    arXiv 2404.00498.
    """

    def __init__(
        self,
        optim: OptimConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        directions: int,
        widths: tuple[int, int, int],
        depth: int,
    ) -> None:
        super().__init__(optim, mean, std, classes)
        self.register_buffer("whitening", torch.zeros(2 * directions, 3, 2, 2))
        layers: list[nn.Module] = []
        before = 2 * directions
        for width in widths:
            layers += [identity_convolution(before, width), nn.MaxPool2d(2), shift_norm(width), nn.SiLU()]
            for _ in range(depth - 1):
                layers += [identity_convolution(width, width), shift_norm(width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes, bias=False)
        nn.init.normal_(self.head.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalise(images).permute(0, 3, 1, 2)
        x = F.silu(F.conv2d(x, self.whitening))
        return self.head(self.features(x).amax((2, 3))) / HEAD_SCALE


def identity_convolution(before: int, after: int) -> nn.Conv2d:
    """A 3x3 convolution whose first `before` outputs are its inputs."""
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:before])
    return convolution


def shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that only shifts."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images: Tensor, directions: int = 12, eps: float = 5e-4) -> Tensor:
    """Filters whose responses to 2x2 patches of `images`, (n, 3, height, width), are uncorrelated and of equal size.

    (2 directions, 3, 2, 2) float32: the eigenvectors of the patches' second moments by falling eigenvalue, each over
    the root of its eigenvalue plus `eps`; then their negatives.
    """
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    filters = (vectors / (values + eps).sqrt()).T.flip(0)[:directions].float().reshape(-1, 3, 2, 2)
    return torch.cat([filters, -filters])


def make_model(config: Config, dataset: Dataset) -> Classifier:
    """The network of `config` for the classes and training images of `dataset`, from torch's generator."""
    common = (config.optim, dataset.mean, dataset.std, len(dataset.classes))
    if not isinstance(config.model, CNNConfig):
        return LogisticRegression(*common)
    model = CNN(*common, config.model.directions, config.model.widths, config.model.depth)
    train, _ = split_train(dataset.labels["train"], config.data)
    some = train[:: max(1, len(train) // 5000)]  # of all classes, also where the images are ordered by class
    images = torch.from_numpy(dataset.images["train"][some])
    model.whitening.copy_(whitening_filters(model.normalise(images).permute(0, 3, 1, 2), config.model.directions))
    return model


class Probabilities(nn.Module):
    """What is served: (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).softmax(1)
