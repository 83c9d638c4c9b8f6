"""One run: seed, fit, test once. Knows no MLflow; takes any Lightning logger."""

import hashlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from cifar_lab.config import Config, UsageError
from cifar_lab.datamodule import CIFAR10DataModule, derive_seed
from cifar_lab.datasets import Dataset
from cifar_lab.models import Classifier, make_model

INITIALISATION = 1 << 32  # beside any epoch number, in the key that a stream derives from


@dataclass(frozen=True)
class Result:
    """A finished run: the trained network, its last metrics, its weights' digest, the file of its last checkpoint."""

    model: Classifier
    metrics: dict[str, float]
    weights_digest: str
    checkpoint: Path


def train(
    config: Config,
    seed: int,
    dataset: Dataset,
    folder: Path,
    accelerator: str = "auto",
    logger: Logger | bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train `config` with `seed` on `dataset`, then score the test set once; checkpoints go to `folder`.

    On the same machine the same arguments give the same weights, bit for bit. `config` must be resolved
    (see resolve_config). Raises NonFiniteLoss.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # not its tips and device lists
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch
    torch.set_num_threads(config.trainer.threads)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, INITIALISATION))
        model = make_model(config, dataset)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[config.trainer.precision],
        max_epochs=config.trainer.epochs,
        deterministic="warn",
        log_every_n_steps=1,  # nothing is logged by step; a larger value only warns about short epochs
        num_sanity_val_steps=0,
        logger=logger,
        callbacks=[
            *callbacks,
            ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = CIFAR10DataModule(dataset, config.data, config.trainer.batch_size, seed)
    trainer.fit(model, batches)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name != "step"}
    metrics |= trainer.test(model, batches, verbose=False)[0]
    metrics.pop("step")
    return Result(model, metrics, weights_digest(model), folder / "last.ckpt")


def weights_digest(model: torch.nn.Module) -> str:
    """16 hex digits over names, types, shapes and bytes of the state dict, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_accelerator(accelerator: str) -> str:
    """The device for "auto", "cpu" or "gpu": "cuda", "mps" or "cpu". Raises UsageError if "gpu" is not there."""
    if accelerator != "cpu":
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
    if accelerator == "gpu":
        raise UsageError("--accelerator gpu: torch finds no GPU here; use cpu or auto")
    return "cpu"


def resolve_config(config: Config, dataset: Dataset, accelerator: str) -> Config:
    """`config` with what depends on the images or the device made explicit: validation size, and precision "auto"."""
    data = config.data.model_copy(update={"val_size": config.data.val_size or len(dataset.labels["train"]) // 10})
    precision = config.trainer.precision
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(accelerator) else "fp32"
    trainer = config.trainer.model_copy(update={"precision": precision})
    return config.model_copy(update={"data": data, "trainer": trainer})


def _has_fast_bf16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
