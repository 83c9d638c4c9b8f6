"""Checks and measurements of the GPU here: a table to paste into a bug report."""

import argparse
import copy
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.tables import markdown_row, markdown_table
from cifar_lab.config import Config, load_config
from cifar_lab.data.cache import Dataset, load_dataset, open_dataset
from cifar_lab.errors import UsageError
from cifar_lab.networks.build import make_model
from cifar_lab.training.checkpoints import load_checkpoint
from cifar_lab.training.hardware import device_tags, exact_fp32, fast_precision, resolve_accelerator
from cifar_lab.training.train import resolve_config, train

WIDTHS = (64, 256, 256)  # of the CNN
TRAIN_SIZE: int | None = None  # images; None: all that are not for validation
EPOCHS = 8
SEEDS = 4
MARGIN = 0.02  # largest difference of mean test accuracy between equivalent devices
IMAGES = 45_000  # of noise: speed does not depend on the pixels
MATRIX = 8192
PRODUCTS = 10
TIMED = ("cnn", "cnn_speedrun")
HEADER = ("check", "passed", "result")


def run(options: argparse.Namespace) -> int:
    """Print the table; 0 if every check passes, else 1. Raises UsageError without a GPU."""
    accelerator = resolve_accelerator("auto")
    if accelerator == "cpu":
        raise UsageError("torch finds no GPU here, so there is nothing to check")
    digits, _ = load_dataset("digits")
    failed = done = 0
    print(markdown_table(HEADER, []))
    with tempfile.TemporaryDirectory() as folder:
        for what, check in _GPU(accelerator, digits, Path(folder)).checks():
            try:
                passed, result = "yes", check()
            except Exception as error:
                passed, result = "NO", f"{type(error).__name__}: {' '.join(str(error).split())}"
                traceback.print_exc()
                failed += 1
            done += 1
            print(markdown_row((what, passed, result)), flush=True)
    print(f"{failed} of {done} checks failed")
    return 1 if failed else 0


@dataclass(frozen=True)
class _GPU:
    """The checks: each returns its result or raises."""

    accelerator: str
    digits: Dataset
    folder: Path

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        fast = fast_precision(self.accelerator)
        yield "GPU found", self.found
        for name in "linear", "cnn", "cnn, one-vs-one":
            yield f"{name}: loss and gradients of the first step as on the CPU", partial(self.first_step, name)
        for precision in dict.fromkeys(("fp32", fast)):
            for name in "linear", "cnn", "cnn, one-vs-one":
                yield f"{name}, {precision}: same weights in two runs", partial(self.same_bits, name, precision)
        yield f"cnn, {fast}, captured: same weights in two runs", partial(self.captured, "cnn", fast)
        yield f"cnn, {fast}: same weights if killed and continued", partial(self.continued, "cnn", fast)
        for name in "linear", "cnn":
            yield f"{name}: test accuracy over {SEEDS} seeds as on the CPU", partial(self.equivalent, name)
        for name in TIMED:
            yield f"{name}, {fast}: speed", partial(self.speed, name, fast)
            yield f"{name}, {fast}, captured: speed", partial(self.speed, name, fast, "trainer.captured=true")

    def found(self) -> str:
        tags = device_tags(self.accelerator)
        versions = {"torch": torch.__version__, "pytorch_lightning": pytorch_lightning.__version__}
        return ", ".join(f"{name} {value}" for name, value in {**tags, **versions}.items())

    def config(self, name: str, precision: str, **trainer: Any) -> Config:
        model: dict[str, Any] = {"kind": "linear"} if name == "linear" else {"kind": "cnn", "widths": WIDTHS}
        if "one-vs-one" in name:
            model["one_vs_one"] = True
        trainer = {"epochs": EPOCHS, "batch_size": 125, "precision": precision, **trainer}
        optim = {"learning_rate": 0.01 if name == "linear" else 1.25}
        data = {"train_size": TRAIN_SIZE}
        config = Config.model_validate({"model": model, "data": data, "trainer": trainer, "optim": optim})
        return resolve_config(config, self.digits, precision)

    def train(self, config: Config, seed: int, accelerator: str, checkpoint: Path | None = None) -> Any:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return train(config, seed, self.digits, checkpoint or Path(folder) / "last.ckpt", accelerator)

    def first_step(self, name: str) -> str:
        exact_fp32()
        torch.manual_seed(0)
        here = make_model(self.config(name, "fp32"), self.digits)
        there = copy.deepcopy(here).to(torch.device(self.accelerator, 0))
        images, labels = (torch.from_numpy(part["train"][:125]) for part in (self.digits.images, self.digits.labels))
        losses = [_first_loss(model, images, labels.long()) for model in (here, there)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
        largest = 0.0
        for (name, cpu), gpu in zip(here.named_parameters(), there.parameters(), strict=True):
            if cpu.grad is not None:
                assert gpu.grad is not None, name
                scale = cpu.grad.abs().max()
                torch.testing.assert_close(gpu.grad.cpu() / scale, cpu.grad / scale, rtol=0, atol=1e-3, msg=name)
                largest = max(largest, float(((gpu.grad.cpu() - cpu.grad) / scale).abs().max()))
        return f"largest difference of gradients {largest:.1e}, relative to the largest in the tensor"

    def same_bits(self, name: str, precision: str) -> str:
        config = self.config(name, precision, tta=name == "cnn")
        first, second = (self.train(config, 0, self.accelerator).weights_digest for _ in range(2))
        assert first == second, f"{first} and {second}"
        return first

    def captured(self, name: str, precision: str) -> str:
        configs = [self.config(name, precision, captured=captured) for captured in (False, True, True)]
        plain, first, second = (self.train(config, 0, self.accelerator).weights_digest for config in configs)
        assert first == second, f"{first} and {second}"
        return f"{first}, {'as' if first == plain else 'not as'} without trainer.captured"

    def continued(self, name: str, precision: str) -> str:
        config, checkpoint = self.config(name, precision), self.folder / "killed.ckpt"
        arguments = (config, self.digits.folder.resolve(), checkpoint, self.accelerator)
        child = multiprocessing.get_context("spawn").Process(target=_train_in_child, args=arguments)
        child.start()
        try:
            while not checkpoint.exists() and child.is_alive():
                time.sleep(0.01)
        finally:
            child.kill()
            child.join()
        assert checkpoint.exists(), f"the process ended early, with exit code {child.exitcode}"
        epochs = load_checkpoint(checkpoint)["epoch"] + 1
        assert epochs < EPOCHS, "the run ended before it could be killed"
        digests = [self.train(config, 0, self.accelerator, file).weights_digest for file in (checkpoint, None)]
        assert digests[0] == digests[1], f"{digests[0]}, without interruption {digests[1]}"
        return f"{digests[0]}, killed after {epochs} of {EPOCHS} epochs"

    def equivalent(self, name: str) -> str:
        config = self.config(name, "fp32", threads=multiprocessing.cpu_count())
        here, there = (
            np.array([self.train(config, seed, accelerator).test["test/acc"] for seed in range(SEEDS)])
            for accelerator in ("cpu", self.accelerator)
        )
        found = summarise(there - here)
        interval = f"{100 * found.ci_low:+.2f} to {100 * found.ci_high:+.2f} points (95 % interval)"
        result = f"{there.mean():.2%}, CPU {here.mean():.2%}; difference {interval}"
        assert max(abs(found.ci_low), abs(found.ci_high)) <= MARGIN, result
        return result

    def speed(self, name: str, precision: str, *settings: str) -> str:
        noise = _noise(self.digits)
        settings = (f"trainer.precision={precision}", "trainer.epochs=2", "data.val_size=0", *settings)
        config = load_config(name, settings)
        config = config.model_copy(update={"data": config.data.model_copy(update={"sides": config.data.sides[-1:]})})
        waits, cuda = _Waits(), self.accelerator == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        file = self.folder / f"{name}{len(settings)}.ckpt"
        result = train(config, 0, noise, file, self.accelerator, callbacks=[waits], test=False)
        memory = torch.cuda.max_memory_allocated() if cuda else torch.mps.driver_allocated_memory()
        seconds = result.epochs[-1].metrics["epoch_seconds"]
        rate = IMAGES / seconds
        share = rate * _operations(config, noise) / self.product_rate(precision)
        each = f"{waits.count / waits.steps:.2g}" if cuda else "unknown"
        return (
            f"{seconds:.2f} s per epoch, {rate:,.0f} images/s, {share:.0%} of the FLOP/s of a matrix product, "
            f"{each} waits for the GPU per step, {memory / 2**30:.2f} GiB"
        )

    def product_rate(self, precision: str) -> float:
        """FLOP/s of a large matrix product."""
        matrix = torch.randn(MATRIX, MATRIX).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        matrix, module = matrix.to(torch.device(self.accelerator, 0)), torch.get_device_module(self.accelerator)
        matrix @ matrix
        module.synchronize()
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            matrix @ matrix
        module.synchronize()
        return PRODUCTS * 2 * MATRIX**3 / (time.perf_counter() - started)


def _first_loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    model.start_stage("train")
    loss = model.step((images.to(model.device), labels.to(model.device)), "train")
    loss.backward()
    return loss.detach().cpu()


def _train_in_child(config: Config, digits: Path, checkpoint: Path, accelerator: str) -> None:
    train(config, 0, open_dataset(digits), checkpoint, accelerator)


class _Waits(Callback):
    """Counts how often the steps of the first epoch wait for the GPU, by torch's sync debug mode."""

    def __init__(self) -> None:
        self.steps, self.count = 0, 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0 and trainer.strategy.root_device.type == "cuda":
            self.caught = warnings.catch_warnings(record=True)
            self.warnings = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0 and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            self.count += sum("synchronizing" in str(warning.message) for warning in self.warnings)
            self.steps += 1


def _noise(digits: Dataset) -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    labels = random.integers(0, len(digits.classes), IMAGES).astype(np.uint8)
    return Dataset(
        "noise", "noise", digits.classes, (0.5,) * 3, (0.29,) * 3, "", Path(), {"train": images}, {"train": labels}
    )


def _operations(config: Config, noise: Dataset) -> float:
    """FLOPs per image of the convolutions and matrix products in forward and backward pass."""
    model, side = make_model(config, noise), config.data.sides[-1]
    images, labels = (torch.from_numpy(part["train"][:8]) for part in (noise.images, noise.labels))
    with FlopCounterMode(display=False) as counter:
        _first_loss(model, images[:, :side, :side], labels.long())
    return counter.get_total_flops() / len(labels)
