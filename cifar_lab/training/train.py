"""One run: seed, fit, test once; continued from its checkpoint if it has one. Knows no MLflow."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UserError
from cifar_lab.networks.build import make_model
from cifar_lab.training.batches import CIFAR10DataModule, batch_sizes, derive_seed
from cifar_lab.training.checkpoints import WholeCheckpoint, weights_digest
from cifar_lab.training.classifier import Classifier, Diverged
from cifar_lab.training.distributed import ddp, ranks
from cifar_lab.training.hardware import exact_fp32, keep_freed_memory, resolve_accelerator

DRAWS = 1  # after rank and epoch, in the key that a stream derives from
DIVERGED = 10  # times the loss of guessing, at the end of training
INITIALISATION = 1 << 32  # beside any epoch number, in the key that a stream derives from


@dataclass(frozen=True)
class Epoch:
    """A completed epoch: its number, from 1; its end in ms since 1970; validation counts (classes, classes) int64, if
    images are held out."""

    number: int
    ended: int
    metrics: dict[str, float]
    confusion: Tensor | None


@dataclass(frozen=True)
class Result:
    """A finished run: the trained network, every epoch's record, the test metrics if any, the weights' digest."""

    model: Classifier
    epochs: tuple[Epoch, ...]
    test: dict[str, float]
    weights_digest: str


def train(
    config: Config,
    seed: int,
    dataset: Dataset,
    checkpoint: Path,
    accelerator: str = "auto",
    report: Callable[[Sequence[Epoch]], None] = lambda epochs: None,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> Result:
    """Train `config` with `seed` on `dataset`, then score the test set once, unless `test` is false.

    After every epoch `checkpoint` is written, then `report` gets the records of all epochs so far. Where `checkpoint`
    exists, training goes on from it. On the same machine the same arguments give the same weights and metrics, bit for
    bit, in one go or in pieces. With several `trainer.devices` the caller is one of so many processes, and alone calls
    `report` and `callbacks`. `config` must be resolved (see resolve_config). Raises Diverged, DataError (the
    checkpoint can't be written), UserError (it can't be read, or memory is short).
    """
    if accelerator == "auto":
        accelerator = resolve_accelerator("auto")
    devices = config.trainer.devices
    run = (config, seed, dataset, checkpoint, accelerator, test)
    with ranks(devices, accelerator, _train, *run) if devices > 1 else nullcontext():
        return _train(0, *run, report, callbacks)


def _train(
    rank: int,
    config: Config,
    seed: int,
    dataset: Dataset,
    checkpoint: Path,
    accelerator: str,
    test: bool,
    report: Callable[[Sequence[Epoch]], None] = lambda epochs: None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    torch.set_num_threads(config.trainer.threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time, and changes no result of ours
    keep_freed_memory()
    exact_fp32()
    record = _Record(checkpoint, report)
    images = len(dataset.labels["train"]) - config.data.val_size
    trainer = _trainer(rank, config, images, accelerator, [*callbacks, record, _Draws(seed, rank)])
    batches = CIFAR10DataModule(dataset, config, seed)
    with _enough_memory(), torch.random.fork_rng(devices=[rank] if accelerator == "cuda" else []):
        torch.manual_seed(derive_seed(seed, INITIALISATION))
        model = make_model(config, dataset)
        model.tta = config.trainer.tta
        trainer.fit(model, batches, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        report(record.epochs)  # of a run that was complete already
        if (loss := record.epochs[-1].metrics["train/loss"]) > DIVERGED * model.guessing_loss:
            far = f"train loss is {loss:.3g} after the last epoch, that of guessing {model.guessing_loss:.3g}"
            raise Diverged(f"{far}: the training has diverged; try a smaller learning rate")
        scores = _decimals(trainer.test(model, batches, verbose=False)[0]) if test else {}
    return Result(model, tuple(record.epochs), scores, weights_digest(model))


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Raises UserError where the device, or this machine, has not enough for what is done within it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = "can't allocate memory" in str(error) or "out of memory" in str(error)  # by a CPU, by Apple's GPU
        if not (told or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        reason = " ".join(str(error).split(". ")[:2]).partition("\n")[0]
        raise UserError(
            f"not enough memory ({reason}); try fewer --jobs or a smaller trainer.micro_batch_size"
        ) from None


def _trainer(rank: int, config: Config, images: int, accelerator: str, callbacks: Sequence[Callback]) -> Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # not its tips and device lists
    warnings.filterwarnings("ignore", message="GPU available but not used")  # which the user decided
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # Classifier sums over the ranks itself
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # its new name is not in every torch
    batch_size, micro_batch_size = batch_sizes(config.trainer, images)
    devices = config.trainer.devices
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy=ddp(rank) if devices > 1 else "auto",
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[config.trainer.precision],
        max_epochs=config.trainer.epochs,
        accumulate_grad_batches=batch_size // micro_batch_size,
        limit_val_batches=1.0 if config.data.val_size else 0,
        deterministic="warn" if accelerator == "mps" else True,  # there max pooling's gradient is not
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # batches are divided by CIFAR10DataModule
        logger=False,
        callbacks=list(callbacks),
        plugins=[WholeCheckpoint(), *([] if devices > 1 else [LightningEnvironment()])],  # not a part of a SLURM job
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Record(Checkpoint):
    """Records every epoch, writes the checkpoint with all records in it, then reports them."""

    def __init__(self, path: Path, report: Callable[[Sequence[Epoch]], None]) -> None:
        self.path, self.report = path, report
        self.epochs: list[Epoch] = []

    def on_train_epoch_end(self, trainer: Trainer, module: Classifier) -> None:
        metrics = _decimals(trainer.callback_metrics)
        counts = module.confusion["val"].cpu() if "val" in module.confusion else None
        self.epochs.append(Epoch(trainer.current_epoch + 1, int(1000 * time.time()), metrics, counts))
        trainer.save_checkpoint(self.path)
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        self.report(self.epochs)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [vars(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]


class _Draws(Callback):
    """What layers draw, such as dropout, follows from (seed, epoch) too, on each device its own."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def on_train_epoch_start(self, trainer: Trainer, *_: object) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, 1 + self.rank, DRAWS))

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start


def _decimals(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Float32 values as their shortest decimals: 0.1, not 0.10000000149."""
    return {name: float(str(np.float32(float(value)))) for name, value in metrics.items()}


def resolve_config(config: Config, dataset: Dataset, fast: str) -> Config:
    """`config` with what depends on the images or the device made explicit: classes, validation size, precision.

    `dataset` is that of the chosen classes (see datasets.select), `fast` the device's fast precision (see machine).
    """
    data = config.data
    if data.classes:
        data = data.model_copy(update={"classes": dataset.classes})
    if data.val_size is None:
        least = len(dataset.classes)  # an image of each
        data = data.model_copy(update={"val_size": max(len(dataset.labels["train"]) // 10, least)})
    trainer = config.trainer
    if trainer.precision == "auto":
        trainer = trainer.model_copy(update={"precision": fast})
    return config.model_copy(update={"data": data, "trainer": trainer})
