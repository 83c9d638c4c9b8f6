"""Measurements on a GPU: `make bench ACCELERATOR=gpu`. They have not been run on one yet."""

from functools import partial

import numpy as np
import torch

from benchmarks.commands import SEEDS, run_experiment
from benchmarks.inside import bare_seconds, tracked_seconds
from benchmarks.table import Row, alternate
from cifar_lab.config import load_config
from cifar_lab.data.cache import Dataset
from cifar_lab.training.hardware import device_tags, fast_precision, resolve_accelerator
from cifar_lab.training.train import resolve_config

NAME = "cnn_speedrun"
CAPTURED = "trainer.captured=true"


def card() -> str:
    """What the figures depend on: the GPU and its libraries."""
    tags = device_tags(resolve_accelerator("gpu"))
    return ", ".join([*(f"{name} {value}" for name, value in tags.items()), f"torch {torch.__version__}"])


def rows(dataset: Dataset) -> list[Row]:
    """Whole runs and epochs of `cnn_speedrun`. Its share of the GPU's peak: see check-gpu."""
    accelerator = resolve_accelerator("gpu")
    return [*_runs(dataset), *_epochs(dataset, accelerator)]


def _epochs(dataset: Dataset, accelerator: str) -> list[Row]:
    """Tracked epochs, captured and not, against a bare eager loop over the same batches."""
    plain, captured = (
        resolve_config(load_config(NAME, settings), dataset, fast_precision(accelerator))
        for settings in ([], [CAPTURED])
    )
    sides = [
        partial(tracked_seconds, captured, dataset, accelerator),
        partial(tracked_seconds, plain, dataset, accelerator),
        partial(bare_seconds, plain, dataset, f"{accelerator}:0"),
    ]
    *ours, bare = (seconds / plain.trainer.epochs for seconds in alternate(sides))
    what = f"epoch of `{NAME}`, tracked, against a bare loop"
    return [
        Row(label, f"{seconds:.3f} s", f"{bare:.3f} s", seconds / bare, "lower")
        for label, seconds in zip((f"{what}, captured", what), ours, strict=True)
    ]


def _runs(dataset: Dataset) -> list[Row]:
    """Whole commands: all seeds against one, captured and not."""
    found = []
    for label, settings in (("captured", ("--set", CAPTURED)), ("not captured", ())):
        arguments = partial(run_experiment, dataset, NAME, *settings, accelerator="gpu")
        one, *_ = arguments("--seeds", "1")
        seconds, _, runs = arguments("--seeds", str(SEEDS))
        accuracies = np.array([run.data.metrics["test/acc_tta"] for run in runs])
        each = np.median([(run.info.end_time - run.info.start_time) / 1000 for run in runs])
        accuracy = f"{accuracies.mean():.2%} ± {accuracies.std(ddof=1):.2%} with test-time augmentation"
        what = f"`{NAME}`, {label}: {SEEDS} seeds ({each:.1f} s per run, {accuracy}) against one, whole commands"
        found.append(Row(what, f"{seconds:.1f} s", f"{one:.1f} s", seconds / one, "lower"))
    return found
