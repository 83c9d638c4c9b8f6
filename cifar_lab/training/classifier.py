"""Classifier: what every network shares, one step for all stages, metrics, optimiser."""

import math
import time

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from cifar_lab.config import OptimConfig
from cifar_lab.errors import UserError
from cifar_lab.training.augmentation import reflect_border
from cifar_lab.training.one_vs_one import PairCoupling, count_pairs
from cifar_lab.training.optimizers import make_optimizer, make_schedule

Batch = tuple[Tensor, Tensor]


class Diverged(UserError):
    """The loss became nan or infinite, or ended far above that of guessing."""


class Classifier(LightningModule):
    """From (b, 32, 32, 3) uint8 images to (b, classes) logits; normalises by channel `mean` and `std` itself.

    A network defines `scores`, (b, outputs). They are the logits; with `one_vs_one` they are of the pairs of classes,
    each trained on its own images alone, and make the logits together (see PairCoupling). `pair_errors[stage]` then has
    the errors of the pairs, (classes, classes).
    Once per epoch it logs `{train,val,test}/{loss,acc}`, `lr` (SGD's, in the last step) and `epoch_seconds`, the time
    of training alone; with `tta` also `test/acc_tta`, with test-time augmentation.
    Keeps the counts of each stage's last epoch in `confusion[stage]`, (classes, classes), rows true, columns predicted.
    Raises Diverged, which names epoch and step, at the end of an epoch in which the loss became nan or infinite.
    """

    def __init__(
        self,
        optim: OptimConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        one_vs_one: bool = False,
    ) -> None:
        super().__init__()
        self.optim, self.classes, self.tta = optim, classes, False
        self.coupling = PairCoupling(classes) if one_vs_one else None
        self.outputs = count_pairs(classes) if one_vs_one else classes
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.confusion: dict[str, Tensor] = {}
        self.pair_errors: dict[str, Tensor] = {}
        self.losses: dict[str, list[Tensor]] = {}
        self.outcomes: dict[str, list[Tensor]] = {}  # true class * classes + predicted class, (b,) of each batch

    @property
    def guessing_loss(self) -> float:
        """The training loss of a network that knows nothing."""
        return (self.classes - 1) * math.log(2) if self.coupling else math.log(self.classes)

    def normalise(self, images: Tensor) -> Tensor:
        """(b, height, width, 3) uint8 to float32 with mean 0 and standard deviation 1 per channel."""
        rows = images.flatten(2)  # the channels' mean and scale, repeated along a row: three at a time would be slow
        repeats = images.shape[2]
        return ((rows - self.mean.repeat(repeats)) * self.scale.repeat(repeats)).view_as(images)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(images).float()
        return self.coupling(scores) if self.coupling else scores

    def step(self, batch: Batch, stage: str) -> Tensor:
        """Loss of one batch; keeps it and the outcomes for the end of the stage, so that no step waits for a GPU."""
        images, labels = batch
        scores = self.scores(images).float()
        logits = self.coupling(scores.detach()) if self.coupling else scores
        smoothing = self.optim.label_smoothing if stage == "train" else 0.0
        if self.coupling and stage == "train":
            loss = self.coupling.loss(scores, labels, smoothing)
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.coupling:
            self.pair_errors[stage] += self.coupling.errors(scores.detach(), labels)
        self.outcomes[stage].append(labels * self.classes + logits.argmax(1))
        self.losses[stage].append(loss.detach() * len(labels))
        return loss

    def start_stage(self, stage: str) -> None:
        self.losses[stage], self.outcomes[stage] = [], []
        if self.coupling:
            self.pair_errors[stage] = torch.zeros_like(self.coupling.pair)

    def count(self, stage: str) -> Tensor:
        """(classes, classes) int64, rows true, columns predicted, of this device's batches so far."""
        counts = torch.bincount(torch.cat(self.outcomes[stage]), minlength=self.classes**2)
        return counts.view(self.classes, self.classes)

    def total(self, value: Tensor, operation: str = "sum") -> Tensor:
        """`value` of all devices together."""
        return self.trainer.strategy.reduce(value.clone(), reduce_op=operation)

    def total_loss(self, stage: str) -> Tensor:
        losses = torch.stack(self.losses[stage])
        total = self.total(losses.sum())
        if not total.isfinite():
            steps = torch.arange(len(losses), device=self.device)
            first = self.total(steps.where(~losses.isfinite(), len(losses)).min(), "min")
            where = f"epoch {self.current_epoch + 1}, step {first + 1} of {len(losses)}"
            raise Diverged(f"{stage} loss is {total.item()} at {where}; try a smaller learning rate")
        return total

    def end_stage(self, stage: str) -> None:
        self.confusion[stage] = self.total(self.count(stage))
        if self.coupling:
            self.pair_errors[stage] = self.total(self.pair_errors[stage])
        count = self.confusion[stage].sum()
        values = {
            f"{stage}/loss": self.total_loss(stage) / count,
            f"{stage}/acc": self.confusion[stage].trace() / count,
        }
        if stage == "train":
            values |= {"lr": self.learning_rate, "epoch_seconds": self.epoch_seconds}
        if stage == "test" and self.tta:
            values["test/acc_tta"] = self.total(self.right) / count
        self.log_dict(values)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        self.learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

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
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):  # each device has seen its part of the images
                for moment in module.running_mean, module.running_var:
                    moment.copy_(self.total(moment, "mean"))
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
