"""One run: seed, fit, test once; continues from a checkpoint if there is one. Knows no MLflow."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EMAWeightAveraging
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

CHECKPOINT_SECONDS = 10.0  # at least, between two checkpoints on a GPU, where an epoch may take half a second
DRAWS = 1  # last element of the key of derive_seed, for what layers draw
DIVERGED = 10  # times the loss of guessing: a final training loss above it has diverged
INITIALISATION = 1 << 32  # in place of an epoch in the key of derive_seed


@dataclass(frozen=True)
class Epoch:
    """The record of a completed epoch."""

    number: int  # from 1
    ended: int  # ms since 1970
    metrics: dict[str, float]
    confusion: Tensor | None  # (classes, classes) int64 on the CPU; None without validation images


@dataclass(frozen=True)
class Result:
    """A finished run: trained network, records of all epochs, test metrics (if scored), digest of the weights."""

    model: Classifier
    epochs: tuple[Epoch, ...]
    test: dict[str, float]
    weights_digest: str
    predictions: dict[str, tuple[Tensor, Tensor]]  # see Classifier, on the CPU; of "val" after the last epoch


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

    After every epoch, `report` gets the records of all epochs so far, and `checkpoint` is written; on a GPU, at most
    every CHECKPOINT_SECONDS, so that `report` gets some epochs again after an interruption. If `checkpoint` exists,
    training continues from it. On one machine, the same arguments give the same weights and metrics, bit for bit,
    interrupted or not. With several `trainer.devices` the caller is rank 0; only rank 0 calls `report` and `callbacks`.
    `config` must be resolved (see resolve_config). With `data.splits = "varied"` the seed also draws the split
    (Bouthillier et al., "Accounting for variance in machine learning benchmarks", 2021). Raises Diverged, and UserError
    if the checkpoint can't be written or read, memory is short, or another rank dies.
    """
    if accelerator == "auto":
        accelerator = resolve_accelerator("auto")
    devices = config.trainer.devices
    run = (config.of_run(seed), seed, dataset, checkpoint, accelerator, test)
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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, not needed here
    keep_freed_memory()
    exact_fp32()
    record = _Record(checkpoint, report, 0.0 if accelerator == "cpu" else CHECKPOINT_SECONDS)
    assert config.data.val_size is not None, "config must be resolved"
    images = config.data.train_size or len(dataset.labels["train"]) - config.data.val_size
    averaging = [_Average(decay=config.optim.ema)] if config.optim.ema else []
    trainer = _trainer(rank, config, images, accelerator, [*callbacks, record, *averaging, _Draws(seed, rank)])
    batches = CIFAR10DataModule(dataset, config, seed)
    with _enough_memory(), torch.random.fork_rng(devices=[rank] if accelerator == "cuda" else []):
        torch.manual_seed(derive_seed(seed, INITIALISATION))
        model = make_model(config, dataset)
        model.tta = config.trainer.tta
        trainer.fit(model, batches, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        report(record.epochs)  # needed if the checkpoint was already complete
        if (loss := record.epochs[-1].metrics["train/loss"]) > DIVERGED * model.guessing_loss:
            losses = f"train loss is {loss:.3g} after the last epoch, that of guessing {model.guessing_loss:.3g}"
            raise Diverged(f"{losses}: the training has diverged; try a smaller learning rate")
        scores = _decimals(trainer.test(model, batches, verbose=False)[0]) if test else {}
        predictions = {"val": record.predictions} if record.predictions else {}
        if test:
            predictions["test"] = _on_cpu(model.predictions["test"])
    return Result(model, tuple(record.epochs), scores, weights_digest(model), predictions)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Turn errors for lack of memory into a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        texts = ("can't allocate memory", "out of memory")  # of torch on a CPU and on Apple's GPU
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)):
            raise
        reason = " ".join(str(error).split(". ")[:2]).partition("\n")[0]
        raise UserError(
            f"not enough memory ({reason}); try fewer --jobs or a smaller trainer.micro_batch_size"
        ) from None


def _trainer(rank: int, config: Config, images: int, accelerator: str, callbacks: Sequence[Callback]) -> Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # hides tips and device lists
    warnings.filterwarnings("ignore", message="GPU available but not used")  # the user's choice
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # Classifier.all_reduce does it
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # older versions of torch lack its new name
    batch_size, micro_batch_size = batch_sizes(config.trainer, images)
    devices, captured = config.trainer.devices, config.trainer.captured  # captured: CapturedClassifier does both
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy=ddp(rank) if devices > 1 else "auto",
        precision="bf16-mixed" if config.trainer.precision == "bf16" else "32-true",
        max_epochs=config.trainer.epochs,
        accumulate_grad_batches=1 if captured else batch_size // micro_batch_size,
        gradient_clip_val=None if captured else config.optim.clip_norm,
        limit_val_batches=1.0 if config.data.val_size else 0,
        deterministic="warn" if accelerator == "mps" else True,  # Apple's gradient of max pooling is not deterministic
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # CIFAR10DataModule divides the batches
        logger=False,
        callbacks=list(callbacks),
        plugins=[WholeCheckpoint(), *([] if devices > 1 else [LightningEnvironment()])],  # ignore SLURM
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Record(Checkpoint):
    """Records every epoch, writes a checkpoint that contains all records, then reports them.

    After the first epoch, no checkpoint is written within `seconds` of the last one, except at the end.
    """

    def __init__(self, path: Path, report: Callable[[Sequence[Epoch]], None], seconds: float) -> None:
        self.path, self.report, self.seconds = path, report, seconds
        self.written = time.monotonic()
        self.epochs: list[Epoch] = []
        self.predictions: tuple[Tensor, Tensor] | None = None  # of the validation images, in the last epoch

    def on_train_epoch_end(self, trainer: Trainer, module: Classifier) -> None:
        metrics = _decimals(trainer.callback_metrics)
        counts = module.confusion["val"].cpu() if "val" in module.confusion else None
        self.epochs.append(Epoch(trainer.current_epoch + 1, int(1000 * time.time()), metrics, counts))
        if counts is not None:
            self.predictions = _on_cpu(module.predictions["val"])
        any_rank = partial(trainer.strategy.reduce_boolean_decision, all=False)
        trainer.should_stop = any_rank(trainer.should_stop)
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if any_rank(ends or not self.path.exists() or time.monotonic() >= self.written + self.seconds):
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()
        self.report(self.epochs)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [vars(epoch) for epoch in self.epochs], "predictions": self.predictions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.predictions = state["predictions"]


class _Average(EMAWeightAveraging):
    """The moving average of the weights: used for validation, and what the run ends with."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_end(trainer, pl_module)  # Lightning leaves it out if the checkpoint was already complete


class _Draws(Callback):
    """Seeds the layers that draw random numbers, such as dropout, from (seed, epoch, rank)."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, 1 + self.rank, DRAWS))

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start


def _on_cpu(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].cpu(), tensors[1].cpu()


def _decimals(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Float32 values rounded to their shortest decimals: 0.1, not 0.10000000149."""
    return {name: float(str(np.float32(float(value)))) for name, value in metrics.items()}


def resolve_config(config: Config, dataset: Dataset, fast: str) -> Config:
    """`config` with explicit classes, validation size and precision, which may depend on the images or the device.

    dataset: after data.selection.select; fast: the device's hardware.fast_precision.
    """
    data = config.data
    if data.classes:
        data = data.model_copy(update={"classes": dataset.classes})
    images, least = len(dataset.labels["train"]), len(dataset.classes)  # at least one of each class
    val_size = max(images // 10, least) if data.val_size is None else data.val_size
    data = data.model_copy(update={"val_size": val_size})
    if data.train_size == images - val_size:
        data = data.model_copy(update={"train_size": None})  # all of them, as by default: the same runs
    trainer = config.trainer
    if trainer.precision == "auto":
        trainer = trainer.model_copy(update={"precision": fast})
    return config.model_copy(update={"data": data, "trainer": trainer})
