"""Measurements within one process: our training epoch, input pipeline and training step against plain PyTorch's."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from functools import partial

import mlflow
import torch
import torch.nn.functional as F
from mlflow.tracking import MlflowClient
from PIL import Image
from pytorch_lightning import Callback
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from benchmarks.table import Row, alternate, timed
from cifar_lab.config import Config, load_config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_train
from cifar_lab.execution import worker
from cifar_lab.networks.build import make_model
from cifar_lab.tracking import lifecycle, provenance
from cifar_lab.training.batches import EVALUATION_BATCH, Batches, TrainBatches, batch_sizes, derive_seed, training_side
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.hardware import fast_precision, keep_freed_memory
from cifar_lab.training.optimizers import make_optimizer, make_schedule
from cifar_lab.training.train import INITIALISATION, resolve_config

FORK = multiprocessing.get_context("fork")
MATRIX = 4096
IMAGES_PER_STEP = 1000  # or more, in whole optimiser steps


def resolved(name: str, dataset: Dataset, *overrides: str) -> Config:
    return resolve_config(load_config(name, list(overrides)), dataset, fast_precision("cpu"))


def epoch(dataset: Dataset) -> list[Row]:
    """An epoch of `train`, with all that is tracked, against a bare loop over the same batches; both on one core.

    On one core, because with a run on every core nobody draws heatmaps and writes metrics for free. The heatmap of the
    last epoch falls outside.
    """
    rows = []
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for name, overrides in (("cnn", ["trainer.epochs=2", "data.sides=[16, 24]"]), ("linear", [])):
        config = resolved(name, dataset, *overrides)
        measures = (partial(tracked_seconds, config, dataset), partial(bare_seconds, config, dataset))
        ours, bare = (seconds / config.trainer.epochs for seconds in alternate(measures))
        what = f"1. epoch of `{name}`, tracked, against a bare loop"
        rows.append(Row(what, *_seconds(ours, bare), ours / bare, "lower"))
    os.sched_setaffinity(0, cores)
    return rows


def _seconds(*values: float) -> list[str]:
    return [f"{value:.3f} s" for value in values]


class _Clock(Callback):
    def on_train_start(self, *_: object) -> None:
        self.seconds = timed()

    def on_train_end(self, *_: object) -> None:
        self.total = self.seconds()


def tracked_seconds(config: Config, dataset: Dataset, accelerator: str = "cpu") -> float:
    """Seconds from the first to the last epoch with Lightning, checkpoints, MLflow and heatmaps."""
    with tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment_id = client.create_experiment("benchmark", f"{folder}/mlruns")
        tags = provenance.run_tags("benchmark", config, dataset, provenance.machine_tags(accelerator))
        tags |= {"kind": "run", "seed": "0"}
        run = lifecycle.create_run(client, experiment_id, "benchmark", tags)
        clock = _Clock()
        worker.train_tracked(client, run, config, dataset, accelerator, callbacks=[clock])
    return clock.total


def bare_seconds(config: Config, dataset: Dataset, device: str = "cpu") -> float:
    return train_bare(config, dataset, device)[1]


def train_bare(config: Config, dataset: Dataset, device: str = "cpu") -> tuple[Classifier, float]:
    """The network that `train` gives for seed 0, by a plain loop, and the seconds of its epochs, with validation."""
    torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(derive_seed(0, INITIALISATION))
    model = make_model(config, dataset).to(device)
    images, labels = (torch.from_numpy(part["train"]) for part in (dataset.images, dataset.labels))
    parts_of = split_train(dataset.labels["train"], config.data)
    train, val = ((images[i].to(device), labels[i].long().to(device)) for i in parts_of)
    batches = TrainBatches(*train, config, 0, lambda: epoch)
    batch_size, micro_batch_size = batch_sizes(config.trainer, len(train[1]))
    parts = batch_size // micro_batch_size
    optimizer = make_optimizer(model, config.optim, _dtype(config))
    schedule = make_schedule(optimizer, config.optim, len(batches) // parts * config.trainer.epochs)
    seconds = timed()
    for epoch in range(config.trainer.epochs):
        val_batches = Batches(*val, EVALUATION_BATCH, partial(training_side, config, epoch))
        model.train()
        for index, batch in enumerate(batches):
            (_loss(model, config, *batch, config.optim.label_smoothing) / parts).backward()
            if (index + 1) % parts == 0:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        model.eval()
        with torch.no_grad():  # without validation images it is one empty batch
            torch.stack([_loss(model, config, *batch, 0.0) for batch in val_batches]).sum().item()
    return model, seconds()


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32


def _loss(
    model: Classifier, config: Config, images: torch.Tensor, labels: torch.Tensor, smoothing: float
) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
        logits = model(images).float()
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)


class Pictures(TorchDataset):
    """CIFAR-10 as torchvision gives it: a PIL image at a time, transformed."""

    def __init__(self, dataset: Dataset, split: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = dataset.images[split], dataset.labels[split], transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def pipeline(dataset: Dataset) -> list[Row]:
    """Images per second, cropped, flipped and normalised: ours on one thread, torchvision's loader with two workers."""
    config = resolved("cnn", dataset, "data.val_size=0", "data.translate=4", "data.sides=[32]")
    torch.set_num_threads(1)
    model = make_model(config, dataset)
    images, labels = (torch.from_numpy(values["train"]) for values in (dataset.images, dataset.labels))
    ours = TrainBatches(images, labels.long(), config, 0, lambda: 0)
    steps = [transforms.ToTensor(), transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*steps, transforms.Normalize(dataset.mean, dataset.std)])
    pictures = Pictures(dataset, "train", transform)
    loader = DataLoader(pictures, batch_size=125, shuffle=True, num_workers=2, persistent_workers=True)

    def seconds(batches: object, finish: object) -> float:
        passed = timed()
        for pixels, _ in batches:
            finish(pixels)
        return passed() / len(labels)

    ours_each, other_each = alternate([partial(seconds, ours, model.normalise), partial(seconds, loader, lambda x: x)])
    rates = [f"{1 / each:,.0f} images/s" for each in (ours_each, other_each)]
    return [Row("2. input pipeline, against torchvision's loader", *rates, other_each / ours_each, "higher")]


def step(dataset: Dataset) -> list[Row]:
    """Arithmetic rate of the training step against that of a large matrix product in the same precision."""
    rows = []
    for name in ("cnn_speedrun", "cnn"):
        config = resolved(name, dataset, "data.sides=[32]")
        torch.set_num_threads(config.trainer.threads)
        keep_freed_memory()
        run, operations = _steps(config, dataset)
        matrix = torch.randn(MATRIX, MATRIX).to(_dtype(config))

        def product(matrix: torch.Tensor = matrix) -> float:
            passed = timed()
            matrix @ matrix
            return passed()

        ours, other = alternate([run, product], times=5)
        rates = (operations / ours, 2 * MATRIX**3 / other)
        text = [f"{rate / 1e9:.0f} GFLOP/s" for rate in rates]
        label = f"3. training step of `{name}` against a matrix product, {config.trainer.precision}"
        rows.append(Row(label, *text, rates[0] / rates[1], "higher"))
    return rows


def _steps(config: Config, dataset: Dataset) -> tuple[Callable[[], float], int]:
    """A function that trains for some steps and returns the seconds, and the number of operations in them.

    Counted are the convolutions and products of forward and backward pass; timed is the optimiser too.
    """
    model = make_model(config, dataset)
    train, _ = split_train(dataset.labels["train"], config.data)
    batch_size, micro = batch_sizes(config.trainer, len(train))
    count = -(-IMAGES_PER_STEP // batch_size) * batch_size
    images, labels = torch.from_numpy(dataset.images["train"][train]), torch.from_numpy(dataset.labels["train"][train])
    batches = list(TrainBatches(images[:count], labels[:count].long(), config, 0, lambda: 0))
    optimizer = make_optimizer(model, config.optim, _dtype(config))

    def run() -> float:
        passed = timed()
        for index, batch in enumerate(batches):
            _loss(model, config, *batch, 0.0).backward()
            if (index + 1) * micro % batch_size == 0:
                optimizer.step()
                optimizer.zero_grad()
        return passed()

    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            _loss(model, config, *batch, 0.0).backward()
    optimizer.zero_grad()
    return run, counter.get_total_flops()


def choices(dataset: Dataset) -> list[Row]:
    """The training step of `cnn` as it is, against the same step with one choice made otherwise."""
    chosen = resolved("cnn", dataset, "data.sides=[32]")
    precision = chosen.trainer.precision
    other_precision = "fp32" if precision == "bf16" else "bf16"
    other = resolved("cnn", dataset, "data.sides=[32]", f"trainer.precision={other_precision}")
    rows = []
    for label, otherwise in (
        (f"{precision} against {other_precision}", partial(_in_child, other, dataset)),
        (f"freed memory kept against glibc's defaults, {precision}", partial(_in_child, chosen, dataset, keep=False)),
    ):
        ours, theirs = alternate([partial(_in_child, chosen, dataset), otherwise])
        rows.append(Row(f"choice: {label}", *_seconds(ours, theirs), ours / theirs, "lower"))
    return rows


def _in_child(*arguments: object, **options: object) -> float:
    """Seconds of a training step in a child process, which leaves this one's allocator as it is."""
    here, there = FORK.Pipe()
    child = FORK.Process(target=lambda: there.send(_step_seconds(*arguments, **options)))
    child.start()
    seconds = here.recv()
    child.join()
    return seconds


def _step_seconds(config: Config, dataset: Dataset, keep: bool = True) -> float:
    torch.set_num_threads(config.trainer.threads)
    if keep:
        keep_freed_memory()
    run, _ = _steps(config, dataset)
    run()
    return run()
