"""Classifier: the step, metrics and optimiser that all networks share."""

import itertools
import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_lab.errors import UserError
from cifar_lab.sections import OptimConfig
from cifar_lab.training.augmentation import reflect_border
from cifar_lab.training.one_vs_one import PairwiseCoupling, count_pairs
from cifar_lab.training.optimizers import make_optimizer, make_schedule

Batch = tuple[Tensor, Tensor]


class Diverged(UserError):
    """The loss became nan or infinite, or ended far above that of guessing."""


class Classifier(LightningModule):
    """From (b, 32, 32, 3) uint8 images to (b, classes) logits; normalises by channel `mean` and `std` itself.

    The scores of `network`, (b, outputs), are the logits. With `one_vs_one` there is one score per pair of
    classes, trained on the images of its two classes only; PairwiseCoupling turns them into logits, and
    `pair_errors[stage]` counts the errors of the pairs, (classes, classes).
    Every epoch logs `{train,val,test}/{loss,acc}`, `train/cross_entropy` (without label smoothing, to compare it with
    `val/loss`), `lr` (of the first group, in the last step) and `epoch_seconds` (training only);
    with `tta` also `test/acc_tta`, the accuracy with test-time augmentation.
    `confusion[stage]` has the counts of a stage's last epoch, (classes, classes), rows true, columns predicted;
    `predictions[stage]`, of "val" and "test", the probabilities, (n, classes) float16, and the labels, (n,) int64.
    Raises Diverged at the end of an epoch in which the loss became nan or infinite; the message names the step.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        optim: OptimConfig,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        one_vs_one: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.optim, self.classes, self.tta = optim, classes, False
        self.coupling = PairwiseCoupling(classes) if one_vs_one else None
        self.outputs = count_pairs(classes) if one_vs_one else classes
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.confusion: dict[str, Tensor] = {}
        self.pair_errors: dict[str, Tensor] = {}
        self.predictions: dict[str, tuple[Tensor, Tensor]] = {}
        self.losses: dict[str, list[Tensor]] = {}
        self.cross_entropies: list[Tensor] = []  # of the training batches
        self.outcomes: dict[str, list[Tensor]] = {}  # true class * classes + predicted class, (b,) of each batch
        self.probabilities: dict[str, list[Tensor]] = {}  # (b, classes) of each batch, but not in training

    @property
    def guessing_loss(self) -> float:
        """The training loss of guessing: of equal logits."""
        return (self.classes - 1) * math.log(2) if self.coupling else math.log(self.classes)

    def normalise(self, images: Tensor) -> Tensor:
        """(b, height, width, 3) uint8 to float32 with mean 0 and standard deviation 1 per channel."""
        rows = images.flatten(2)  # whole rows at once are faster than three channels at a time
        repeats = images.shape[2]
        return ((rows - self.mean.repeat(repeats)) * self.scale.repeat(repeats)).view_as(images)

    def scores(self, images: Tensor) -> Tensor:
        """(b, outputs) of (b, height, width, 3) uint8 images."""
        if pixels := getattr(self.network, "forward_pixels", None):
            return pixels(images, self.mean, self.scale)
        return self.network(self.normalise(images).permute(0, 3, 1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.scores(images).float())

    def logits(self, scores: Tensor) -> Tensor:
        return self.coupling(scores) if self.coupling else scores

    def step(self, batch: Batch, stage: str) -> Tensor:
        """Loss of one batch, which is also recorded.

        The labels are (b,) int64, or (b, classes) float32 shares, of which the largest counts for the outcome.
        """
        images, targets = batch
        scores = self.scores(images).float()
        logits = self.logits(scores.detach())
        loss = self.loss(scores if stage == "train" else logits, targets, stage)
        self.record(stage, loss.detach(), scores.detach(), logits, targets)
        return loss

    def loss(self, scores: Tensor, targets: Tensor, stage: str) -> Tensor:
        """Mean over images. scores: (b, outputs) in training; else the logits."""
        smoothing = self.optim.label_smoothing if stage == "train" else 0.0
        if self.coupling and stage == "train":
            return self.coupling.loss(scores, targets, smoothing)
        return F.cross_entropy(scores, targets, label_smoothing=smoothing)

    def record(self, stage: str, loss: Tensor, scores: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Store loss and outcomes of a batch until the stage ends, so that no step waits for the GPU."""
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        if self.coupling:
            self.pair_errors[stage] += self.coupling.errors(scores, labels)
        self.outcomes[stage].append(labels * self.classes + logits.argmax(1))
        self.losses[stage].append(loss * len(labels))
        if stage == "train":
            self.cross_entropies.append(F.cross_entropy(logits, targets) * len(labels))
        if stage != "train":
            self.probabilities[stage].append(logits.softmax(1).half())

    def start_stage(self, stage: str) -> None:
        self.losses[stage], self.outcomes[stage], self.probabilities[stage] = [], [], []
        if stage == "train":
            self.cross_entropies = []
        if self.coupling:
            self.pair_errors[stage] = torch.zeros_like(self.coupling.pair)

    def count(self, stage: str) -> Tensor:
        """Confusion counts of this device's batches so far: (classes, classes) int64, rows true, columns predicted."""
        outcomes = torch.cat(self.outcomes[stage])
        counts = outcomes.new_zeros(self.classes**2)  # bincount would wait for the GPU
        return counts.index_add_(0, outcomes, torch.ones_like(outcomes)).view(self.classes, self.classes)

    def in_order(self, parts: list[Tensor], count: int) -> Tensor:
        """(count, ...) rows of all devices' batches, of which device r has number r, r + devices, ..."""
        whole = parts[0].new_zeros(count, *parts[0].shape[1:])
        rank, devices, size = self.trainer.global_rank, self.trainer.world_size, len(parts[0])
        for start, part in zip(itertools.count(rank * size, devices * size), parts, strict=False):
            whole[start : start + len(part)] = part
        return self.all_reduce(whole)

    def all_reduce(self, value: Tensor, operation: str = "sum") -> Tensor:
        """`value` reduced over all devices: "sum", "mean" or "min"."""
        return self.trainer.strategy.reduce(value.clone(), reduce_op=operation)

    def summed_loss(self, stage: str) -> Tensor:
        """The loss summed over the images of all devices. Raises Diverged if it is not finite."""
        losses = torch.stack(self.losses[stage])
        total = self.all_reduce(losses.sum())
        if not total.isfinite():
            steps = torch.arange(len(losses), device=self.device)
            first = self.all_reduce(steps.where(~losses.isfinite(), len(losses)).min(), "min")
            where = f"epoch {self.current_epoch + 1}, step {first + 1} of {len(losses)}"
            raise Diverged(f"{stage} loss is {total.item()} at {where}; try a smaller learning rate")
        return total

    def end_stage(self, stage: str) -> None:
        self.confusion[stage] = self.all_reduce(self.count(stage))
        if self.coupling:
            self.pair_errors[stage] = self.all_reduce(self.pair_errors[stage])
        count = self.confusion[stage].sum()
        if stage != "train":
            outcomes = self.in_order(self.outcomes[stage], int(count))
            self.predictions[stage] = self.in_order(self.probabilities[stage], int(count)), outcomes // self.classes
        values: dict[str, Tensor | float] = {
            f"{stage}/loss": self.summed_loss(stage) / count,
            f"{stage}/acc": self.confusion[stage].trace() / count,
        }
        if stage == "train":
            plain = self.all_reduce(torch.stack(self.cross_entropies).sum()) / count
            values |= {"train/cross_entropy": plain, "lr": self.learning_rate, "epoch_seconds": self.epoch_seconds}
        if stage == "test" and self.tta:
            values["test/acc_tta"] = self.all_reduce(self.correct) / count
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
            self.correct += (self.augmented_logits(images).argmax(1) == labels).sum()

    def augmented_logits(self, images: Tensor) -> Tensor:
        """Mean logits of images and mirror images: 1/2 unshifted, 1/4 shifted up and left, 1/4 down and right."""
        padded = reflect_border(reflect_border(images, 1, 1), 1, 2)
        views = [(images, 0.25), (padded[:, 2:, 2:], 0.125), (padded[:, :-2, :-2], 0.125)]
        return sum(weight * (self(view).float() + self(view.flip(2)).float()) for view, weight in views)

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()
        self.start_stage("train")

    def end_training(self) -> None:
        for module in self.modules():
            if isinstance(module, _BatchNorm):  # each device has seen its share of the images
                for moment in filter(torch.is_tensor, (module.running_mean, module.running_var)):
                    moment.copy_(self.all_reduce(moment, "mean"))
        self.summed_loss("train")  # report a diverged training before validation reports its consequences
        self.epoch_seconds = time.perf_counter() - self.started

    def on_validation_epoch_start(self) -> None:
        self.end_training()
        self.start_stage("val")

    def on_test_epoch_start(self) -> None:
        self.correct = torch.zeros((), device=self.device)
        self.start_stage("test")

    def on_train_epoch_end(self) -> None:
        if not self.trainer.enable_validation:
            self.end_training()
        self.end_stage("train")

    def on_validation_epoch_end(self) -> None:
        self.end_stage("val")

    def on_test_epoch_end(self) -> None:
        self.end_stage("test")

    def count_steps(self) -> int:
        """The optimiser steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> dict:
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
        optimizer = make_optimizer(self, self.optim, dtype)
        schedule = make_schedule(optimizer, self.optim, self.count_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
