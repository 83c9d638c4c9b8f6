"""CIFAR10DataModule: the split, and batches that never leave the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from cifar_lab.config import Config, TrainerConfig
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_train
from cifar_lab.training.augmentation import reflect_border, resize

EVALUATION_BATCH = 250  # images; of twice as many, activations leave a CPU's cache
FLIPS = 1 << 33  # beside any epoch number, in the key that a stream derives from


def derive_seed(*key: int) -> int:
    """63 bits from a key such as (seed, epoch): near keys give unrelated streams (numpy.random.SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(*key: int) -> torch.Generator:
    """Draws from a key, on the CPU, whose generator differs from a GPU's: one seed gives one order on all devices."""
    return torch.Generator().manual_seed(derive_seed(*key))


def batch_sizes(trainer: TrainerConfig, images: int) -> tuple[int, int]:
    """Of `images` training images, how many an optimiser step takes, and how many of these go at once.

    Both can be shared by the devices.
    """
    batch_size = min(trainer.batch_size, images // trainer.devices * trainer.devices)
    return batch_size, min(trainer.micro_batch_size or batch_size, batch_size)


def training_side(config: Config, epoch: int) -> int:
    """Side of the training images in an epoch, counted from 0: the epochs are divided among `data.sides`.

    Of fewer epochs than sides the first sides are left out, so that training always ends with the last.
    """
    sides, epochs = config.data.sides, config.trainer.epochs
    return sides[-(-(epoch + 1) * len(sides) // epochs) - 1]


def epoch_costs(config: Config) -> list[int]:
    """What each epoch costs, relative to the others: the pixels of an image."""
    return [training_side(config, epoch) ** 2 for epoch in range(config.trainer.epochs)]


class Batches:
    """Batches ((b, side, side, 3) uint8, (b,) int64) of images in order, the last one as small as it comes.

    Of several devices each, by its `rank`, takes one and leaves the next to the others. None may be left without.
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
    """Shuffled and augmented batches, all of one size; order and augmentation depend on (seed, epoch) alone.

    Augmentation: a shift by up to `translate` pixels into a reflected border; a mirror image every other time that an
    image is seen, half of them in the first epoch (alternating flip: Keller Jordan, 2024, arXiv 2404.00498); a smaller
    image in the epochs where `sides` asks for it. An epoch takes as many images as make whole batches of `batch_size`,
    which come in parts of `micro_batch_size`. Of several devices each, by its `rank`, gets its share of every part.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        config: Config,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
    ) -> None:
        batch_size, self.batch_size = batch_sizes(config.trainer, len(labels))
        self.count = len(labels) // batch_size * batch_size // self.batch_size * self.batch_size
        self.labels, self.config, self.seed, self.epoch, self.rank = labels, config, seed, epoch, rank
        self.mirrored = torch.rand(len(labels), generator=_generator(seed, FLIPS)) < 0.5
        padded = reflect_border(reflect_border(images, config.data.translate, 1), config.data.translate, 2)
        padded = torch.cat([padded, padded.flip(2)])  # of image i of n the mirror image is n + i
        self.width = padded.shape[1]
        # any 32 pixels in a row; a shifted image is 32 of them, and copying rows is many times faster than pixels
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
        order, starts = (x.view(-1, devices, share)[:, self.rank].reshape(-1).to(device) for x in (order, starts))
        for index, start in zip(order.split(share), starts.split(share), strict=True):
            images = self.rows.index_select(0, (start[:, None] + down).view(-1)).view(-1, 32, 32, 3)
            yield resize(images, side), self.labels[index]


class CIFAR10DataModule(LightningDataModule):
    """Train, validation and test batches of a data set, as uint8 on the trainer's device.

    Images are validated at the side that was trained in the epoch, and tested at the last one.
    """

    def __init__(self, dataset: Dataset, config: Config, seed: int) -> None:
        super().__init__()
        self.dataset, self.config, self.seed = dataset, config, seed

    def train_dataloader(self) -> TrainBatches:
        rank = self.trainer.global_rank
        return TrainBatches(*self._tensors("train", 0), self.config, self.seed, self._epoch, rank)

    def val_dataloader(self) -> Batches:
        return self._in_order("train", 1, side=lambda: training_side(self.config, self._epoch()))

    def test_dataloader(self) -> Batches:
        return self._in_order("test", side=lambda: self.config.data.sides[-1])

    def _epoch(self) -> int:
        return self.trainer.current_epoch

    def _in_order(self, *split: str | int, side: Callable[[], int]) -> Batches:
        rank, devices = self.trainer.global_rank, self.trainer.world_size
        return Batches(*self._tensors(*split), EVALUATION_BATCH, side, rank, devices)

    def _tensors(self, split: str, part: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.dataset.images[split], self.dataset.labels[split]
        if part is not None:
            index = split_train(labels, self.config.data)[part]
            images, labels = images[index], labels[index]
        device = self.trainer.strategy.root_device
        return torch.from_numpy(images).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)
