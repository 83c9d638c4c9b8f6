"""Train a tracked run again, from its tracked config, seed and images, and compare the two bit for bit."""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from filelock import Timeout
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UserError
from cifar_lab.execution.worker import train_tracked
from cifar_lab.tracking import lifecycle, locks, places, queries, recovery, store, summaries
from cifar_lab.tracking.load import config_of, dataset_of
from cifar_lab.tracking.provenance import machine_tags, run_tags
from cifar_lab.tracking.recovery import end_dead_runs
from cifar_lab.training.hardware import check_devices, resolve_accelerator
from cifar_lab.training.train import Epoch

EPOCH_METRICS = ("train/loss", "train/cross_entropy", "train/acc", "val/loss", "val/acc", "lr")  # all but epoch_seconds
TEST_METRICS = ("test/loss", "test/acc", "test/acc_tta")
CONTEXT = {  # tags that may explain a difference
    "mlflow.source.git.commit": "git commit",
    "git_dirty": "uncommitted code",
    "data_digest": "images",
    "split_digest": "split",
    **recovery.ENVIRONMENT,
}


@dataclass(frozen=True)
class Verdict:
    """The differences between a tracked run and its reproduction."""

    first: str  # the first metric that differs by more than the tolerance; "" if none does
    largest: float  # difference of a metric
    same_weights: bool
    context: tuple[str, ...]  # differing settings, images, code and machine, each as "name: x tracked, y now"
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether all metrics are equal within the tolerance and, if that is zero, the weights are identical."""
        return not self.first and (self.same_weights or self.tolerance > 0)

    def __str__(self) -> str:
        if self.holds and self.largest == 0 and self.same_weights:
            return "identical: every metric of every epoch, and the weights"
        weights = "the weights are the same" if self.same_weights else "the weights differ"
        if self.holds:
            return f"within {self.tolerance:g}: the largest difference is {self.largest:.3g}; {weights}"
        context = "; ".join(self.context) or "nothing that is tracked"
        return f"different: {self.first or 'no metric'}; {weights}\nwhat else differs: {context}"


def run(options: argparse.Namespace) -> int:
    """Train a run again, track it, print the verdict; 0 if it holds, else 1. Raises UserError."""
    client, prefix, accelerator = store.connect(), options.run, options.accelerator
    original = queries.find_run(client, prefix)
    if original.data.tags.get("kind") not in ("run", "reproduction") or original.info.status != "FINISHED":
        raise UserError(f"run {prefix} is not a finished run ({original.info.run_name}, {original.info.status})")
    config, dataset = config_of(client, original, options.trust), dataset_of(client, original, options.data_dir)
    if accelerator == "auto":
        accelerator = _accelerator(original.data.tags.get("accelerator", "unknown"))
    accelerator = resolve_accelerator(accelerator)
    check_devices(accelerator, config.trainer.devices)
    print(f"{original.info.run_name} ({original.info.run_id}) again on {accelerator}, {dataset.title}", flush=True)
    again = _train(client, original, config, dataset, accelerator)
    verdict = compare_runs(client, original, again, options.tolerance)
    summaries.log_verdict(client, again, str(verdict))
    print(verdict)
    return 0 if verdict.holds else 1


def _accelerator(tracked: str) -> str:
    if tracked != resolve_accelerator("cpu" if tracked == "cpu" else "auto"):
        raise UserError(f"the run was trained on {tracked}, which is missing; try --accelerator cpu --tolerance 0.01")
    return "cpu" if tracked == "cpu" else "gpu"


def _train(client: MlflowClient, original: Run, config: Config, dataset: Dataset, accelerator: str) -> Run:
    name = f"{original.info.run_name}-again"
    tags = run_tags(original.data.tags["experiment"], config, dataset, machine_tags(accelerator))
    end_dead_runs(client, original.info.experiment_id, tags)
    tags |= {"kind": "reproduction", "seed": original.data.tags["seed"], "reproduces": original.info.run_id}
    tags["mlflow.source.name"] = f"cifar_lab reproduce {original.info.run_id}"
    tracked = _points(client, original, EPOCH_METRICS)
    shown: list[int] = []

    def report(epochs: Sequence[Epoch]) -> None:
        if len(epochs) == len(shown):
            return
        shown.append(len(epochs))
        last = epochs[-1]
        now = {(last.number, m): last.metrics[m] for m in EPOCH_METRICS if m in last.metrics}
        largest = max(abs(value - tracked.get(key, np.nan)) for key, value in now.items())
        print(f"epoch {len(epochs)} of {config.trainer.epochs}: largest difference {largest:.3g}", flush=True)

    try:
        with locks.claimed(tags):
            run = lifecycle.create_run(client, original.info.experiment_id, name, tags)
            try:
                train_tracked(client, run, config, dataset, accelerator, report)
            finally:  # a reproduction is never continued
                shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
    except SystemExit:
        raise KeyboardInterrupt from None  # Lightning turned it into an exit
    except Timeout:
        raise UserError(f"{original.info.run_name} is being trained by another process; try again later") from None
    return client.get_run(run.info.run_id)


def compare_runs(client: MlflowClient, original: Run, again: Run, tolerance: float) -> Verdict:
    """The differences between two finished runs; metrics are compared in the order in which they were logged."""
    then, now = (_points(client, run, EPOCH_METRICS + TEST_METRICS) for run in (original, again))
    first, largest = "", 0.0
    for epoch, metric in sorted(then.keys() | now.keys(), key=_order):
        values = [points.get((epoch, metric), np.nan) for points in (then, now)]
        difference = abs(values[0] - values[1])
        largest = max(largest, difference)
        if not difference <= tolerance and not first:
            shown = ["missing" if np.isnan(value) else f"{value!r}" for value in values]
            first = f"first at epoch {epoch}, {metric}: {shown[0]} tracked, {shown[1]} now"
    weights = [run.data.tags.get("weights_digest") for run in (original, again)]
    return Verdict(first, largest, weights[0] == weights[1], _context(original, again), tolerance)


def _points(client: MlflowClient, run: Run, metrics: Sequence[str]) -> dict[tuple[int, str], float]:
    return {(p.step, metric): p.value for metric in metrics for p in client.get_metric_history(run.info.run_id, metric)}


def _order(point: tuple[int, str]) -> tuple[bool, int, int]:
    epoch, metric = point
    return metric in TEST_METRICS, epoch, (EPOCH_METRICS + TEST_METRICS).index(metric)


def _context(original: Run, again: Run) -> tuple[str, ...]:
    settings = {name: name for name in sorted(original.data.params.keys() | again.data.params.keys())}
    return tuple(
        f"{name}: {then.get(key)} tracked, {now.get(key)} now"
        for names, then, now in (
            (settings, original.data.params, again.data.params),
            (CONTEXT, original.data.tags, again.data.tags),
        )
        for key, name in names.items()
        if then.get(key) != now.get(key)
    )
