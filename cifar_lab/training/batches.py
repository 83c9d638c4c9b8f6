"""CIFAR10DataModule: split and batches, all in the memory of the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, Trainer

from cifar_lab import network_files
from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import noisy_labels, split_train
from cifar_lab.sections import TrainerConfig
from cifar_lab.training.augmentation import augment, draw_augmentation, reflect_border, resize

EVALUATION_BATCH = 250  # images; the activations of twice as many do not fit into a CPU's cache
GPU_EVALUATION_BATCH = 2000  # has fewer launches; no setting, because only the last digits of a loss depend on it
FLIPS = 1 << 33  # in place of an epoch in the key of derive_seed
RANGE = 25  # steps; a run is stopped between two ranges
AUGMENTATION = 3  # last element of the key of derive_seed; 2 in epoch 0 would be the key of FLIPS, in 32-bit words


def derive_seed(*key: int) -> int:
    """63 bits from a key such as (seed, epoch); similar keys give independent streams (numpy.random.SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(*key: int) -> torch.Generator:
    """A generator on the CPU, so that a seed gives the same draws on every device: a GPU's generator differs."""
    return torch.Generator().manual_seed(derive_seed(*key))


def batch_sizes(trainer: TrainerConfig, images: int) -> tuple[int, int]:
    """Batch and micro-batch size for `images` training images; both are multiples of the number of devices."""
    batch_size = min(trainer.batch_size, images // trainer.devices * trainer.devices)
    return batch_size, min(trainer.micro_batch_size or batch_size, batch_size)


def training_side(config: Config, epoch: int) -> int:
    """Side of the training images in an epoch, counted from 0: the epochs are divided among `data.sides`.

    With fewer epochs than sides the first sides are skipped: training always ends with the last side.
    """
    sides, epochs = config.data.sides, config.trainer.epochs
    return sides[-(-(epoch + 1) * len(sides) // epochs) - 1]


def epoch_costs(config: Config) -> list[int]:
    """The relative cost of each epoch: the pixels of an image."""
    return [training_side(config, epoch) ** 2 for epoch in range(config.trainer.epochs)]


class Batches:
    """Batches ((b, side, side, 3) uint8, (b,) int64) of images in order; the last batch may be smaller.

    With several devices, rank r takes batches r, r + devices, ...; every rank must get at least one.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        side: Callable[[], int],
        rank: int = 0,
        devices: int = 1,
    ) -> None:
        self.side = side
        batch_size = min(batch_size, max(1, len(labels) // devices))
        self.batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))[rank::devices]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        side = self.side()
        for images, labels in self.batches:
            yield resize(images, side), labels


class TrainBatches:
    """Shuffled and augmented batches of equal size; order and augmentation depend on (seed, epoch) alone.

    Augmentation: a shift by up to `translate` pixels into a reflected border; a flip every other time an image is seen,
    for a random half of them in the first epoch (alternating flip: Keller Jordan, 2024, arXiv 2404.00498); then what
    augmentation.augment does, and the network file's own `augment`; at last, resizing to the epoch's side. If images
    are mixed, labels are (b, classes) float32 shares. An epoch has as many images as fill whole batches of
    `batch_size`, which come in micro-batches of
    `micro_batch_size`. With several devices, rank r gets the r-th part of every micro-batch.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        config: Config,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        classes: int = 10,
    ) -> None:
        batch_size, self.batch_size = batch_sizes(config.trainer, len(labels))
        self.parts = batch_size // self.batch_size  # micro-batches of an optimiser step
        self.count = len(labels) // batch_size * batch_size // self.batch_size * self.batch_size
        self.labels, self.config, self.seed, self.epoch, self.rank = labels, config, seed, epoch, rank
        self.classes, self.mean = classes, images.view(-1, 3).float().mean(0).round().to(torch.uint8)
        self.own_augment = vars(network_files.load(config.model.kind, config.model.source)).get("augment")
        self.mirrored = torch.rand(len(labels), generator=_generator(seed, FLIPS)) < 0.5
        padded = reflect_border(reflect_border(images, config.data.translate, 1), config.data.translate, 2)
        padded = torch.cat([padded, padded.flip(2)])  # image n + i is image i of n, mirrored
        self.width = padded.shape[1]
        # all rows of 32 pixels: a shifted image is 32 of them, and copying rows is many times faster than pixels
        self.rows = padded.view(-1).as_strided((padded.numel() // 3 - 31, 32 * 3), (3, 1))

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        device, epoch, shifts = self.labels.device, self.epoch(), 2 * self.config.data.translate + 1
        generator = _generator(self.seed, epoch)
        order = torch.randperm(len(self.labels), generator=generator)[: self.count]
        y, x = torch.randint(shifts, (2, self.count), generator=generator)
        mirrored = (self.mirrored[order] ^ (epoch % 2 == 1)) if self.config.data.flip else torch.zeros_like(order)
        starts = ((mirrored * len(self.labels) + order) * self.width + y) * self.width + x
        down = torch.arange(32, device=device) * self.width
        side, devices = training_side(self.config, epoch), self.config.trainer.devices
        share = self.batch_size // devices
        draws = draw_augmentation(self.count, self.config.data, _generator(self.seed, epoch, AUGMENTATION))
        own = _generator(self.seed, epoch, 1 + self.rank, AUGMENTATION)
        parts = zip(
            *(x.view(-1, devices, share, *x.shape[1:])[:, self.rank].to(device) for x in (order, starts, draws)),
            strict=True,
        )
        for index, start, draw in parts:
            images = self.rows.index_select(0, (start[:, None] + down).view(-1)).view(-1, 32, 32, 3)
            labels = self.labels[index]
            images, labels = augment(images, labels, draw, self.config.data, self.mean, self.classes)
            if self.own_augment:
                images = self.own_augment(images.permute(0, 3, 1, 2), labels, own).permute(0, 2, 3, 1)
            yield resize(images, side), labels


class Ranges:
    """What Lightning takes for a batch if the step is captured: up to RANGE steps, each a list of its micro-batches."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches, self.steps = batches, len(batches) // batches.parts

    def __len__(self) -> int:
        return -(-self.steps // RANGE)

    def __iter__(self) -> Iterator[list[list[tuple[torch.Tensor, torch.Tensor]]]]:
        batches, parts = iter(self.batches), range(self.batches.parts)
        for start in range(0, self.steps, RANGE):
            yield [[next(batches) for _ in parts] for _ in range(min(RANGE, self.steps - start))]


class CIFAR10DataModule(LightningDataModule):
    """Train, validation and test batches of a data set, as uint8 on the trainer's device.

    Validation images have the side of the epoch's training images, test images the last side.
    """

    trainer: Trainer

    def __init__(self, dataset: Dataset, config: Config, seed: int) -> None:
        super().__init__()
        self.dataset, self.config, self.seed = dataset, config, seed

    def train_dataloader(self) -> TrainBatches | Ranges:
        rank = self.trainer.global_rank
        classes = len(self.dataset.classes)
        batches = TrainBatches(*self._tensors("train", 0), self.config, self.seed, self._epoch, rank, classes)
        return Ranges(batches) if self.config.trainer.captured else batches

    def val_dataloader(self) -> Batches:
        return self._in_order(self._tensors("train", 1), lambda: training_side(self.config, self._epoch()))

    def test_dataloader(self) -> Batches:
        return self._in_order(self._tensors("test"), lambda: self.config.data.sides[-1])

    def _epoch(self) -> int:
        return self.trainer.current_epoch

    def _in_order(self, tensors: tuple[torch.Tensor, torch.Tensor], side: Callable[[], int]) -> Batches:
        batch_size = EVALUATION_BATCH if tensors[0].device.type == "cpu" else GPU_EVALUATION_BATCH
        return Batches(*tensors, batch_size, side, self.trainer.global_rank, self.trainer.world_size)

    def _tensors(self, split: str, part: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.dataset.images[split], self.dataset.labels[split]
        if part is not None:
            index = split_train(labels, self.config.data)[part]
            if part == 0:
                labels = noisy_labels(labels, len(self.dataset.classes), self.config.data)
            images, labels = images[index], labels[index]
        device = self.trainer.strategy.root_device
        return torch.from_numpy(images).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)
