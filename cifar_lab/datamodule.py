"""CIFAR10DataModule: the split, and batches that never leave the device."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from sklearn.model_selection import train_test_split

from cifar_lab.config import DataConfig, UsageError
from cifar_lab.datasets import Dataset


def split_train(labels: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and validation images: stratified, the same for every seed and model.

    Raises UsageError if `data.val_size` does not leave every class an image on both sides.
    """
    try:
        train, val = train_test_split(
            np.arange(len(labels)), test_size=data.val_size, stratify=labels, random_state=data.split_seed
        )
    except ValueError as error:
        raise UsageError(f"data.val_size = {data.val_size} of {len(labels)} training images: {error}") from None
    return np.sort(train), np.sort(val)


def split_digest(labels: np.ndarray, data: DataConfig) -> str:
    """12 hex digits of the validation indices: results are comparable where it is equal."""
    return hashlib.sha256(split_train(labels, data)[1].tobytes()).hexdigest()[:12]


def derive_seed(*key: int) -> int:
    """63 bits from a key such as (seed, epoch): near keys give unrelated streams (numpy.random.SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """Batches ((b, 32, 32, 3) uint8, (b,) int64) of images in order, the last one as small as it comes."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


class TrainBatches(Batches):
    """Shuffled and augmented batches, all of one size; order and augmentation depend on (seed, epoch) alone.

    Augmentation: a shift by up to `translate` pixels into a reflected border, and a mirror image of half of them.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        data: DataConfig,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        super().__init__(images, labels, min(batch_size, len(labels)))
        self.data, self.seed, self.epoch = data, seed, epoch
        pad, side = data.translate, 2 * data.translate + 1
        reflect = np.pad(np.arange(32), pad, mode="reflect")
        padded = images[:, reflect][:, :, reflect]
        n, row, column, channel = padded.stride()
        # windows[i, y, x] is image i shifted by (y, x): views, so that shifting is one gather
        self.windows = padded.as_strided((len(images), side, side, 32, 32, 3), (n, row, column, row, column, channel))

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        device, count = self.labels.device, len(self) * self.batch_size
        generator = torch.Generator(device).manual_seed(derive_seed(self.seed, self.epoch()))
        order = torch.randperm(len(self.labels), generator=generator, device=device)[:count]
        shifts = torch.randint(self.windows.shape[1], (2, count), generator=generator, device=device)
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5 * self.data.flip
        for index, y, x, mirror in zip(*(t.split(self.batch_size) for t in (order, *shifts, mirrored)), strict=True):
            images = self.windows[index, y, x]
            yield torch.where(mirror[:, None, None, None], images.flip(2), images), self.labels[index]


class CIFAR10DataModule(LightningDataModule):
    """Train, validation and test batches of a data set, as uint8 on the trainer's device."""

    def __init__(self, dataset: Dataset, data: DataConfig, batch_size: int, seed: int) -> None:
        super().__init__()
        self.dataset, self.data, self.batch_size, self.seed = dataset, data, batch_size, seed

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(
            *self._tensors("train", 0), self.batch_size, self.data, self.seed, lambda: self.trainer.current_epoch
        )

    def val_dataloader(self) -> Batches:
        return Batches(*self._tensors("train", 1), 1000)

    def test_dataloader(self) -> Batches:
        return Batches(*self._tensors("test"), 1000)

    def _tensors(self, split: str, part: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.dataset.images[split], self.dataset.labels[split]
        if part is not None:
            index = split_train(labels, self.data)[part]
            images, labels = images[index], labels[index]
        device = self.trainer.strategy.root_device
        return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device, torch.int64)
