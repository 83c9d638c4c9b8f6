"""Accuracy over the values of one setting: each value is an experiment of its own, with a parent run and repeats."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from rich.table import Column, Table

from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.figures import plot_curve
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import select
from cifar_lab.errors import UsageError
from cifar_lab.execution.cluster import Cluster
from cifar_lab.execution.experiment import Result, run_experiments
from cifar_lab.execution.local import Pool
from cifar_lab.execution.variants import Variant
from cifar_lab.files import atomic_write
from cifar_lab.tracking import queries
from cifar_lab.training.train import resolve_config

METRICS = {"val/acc": "validation accuracy", "test/acc": "test accuracy"}


def run_curve(
    variants: Sequence[Variant],
    key: str,
    figure: Path,
    seeds: Sequence[int],
    dataset: Dataset,
    fallback_reason: str,
    workers: Pool | Cluster,
) -> int:
    """Train the missing runs of the variants, print a table of their accuracies, and draw them in `figure`.

    Returns 0, 1 if a run failed, 130 if interrupted. Raises UserError.
    """
    names = [_name(variant, key, dataset, workers.precision) for variant in variants]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"two of the values of {key} give the same settings, those of {twice[0]}")
    by_name = dict(zip(names, variants, strict=True))
    finished: dict[str, list[Run]] = {}

    def table(client: MlflowClient, results: Sequence[Result]) -> Table:
        finished.update({item.name: runs for item, runs in results})
        setting = Column(key.replace(".", ".\n", 1), overflow="fold")
        shown = Table("experiment", setting, "n", "val acc, %", "test acc, %", "seconds")
        for item, runs in results:
            variant, cells = by_name[item.name], [_with_interval(_values(runs, metric)) for metric in METRICS]
            seconds = f"{queries.training_seconds(client, runs):.1f}" if runs else "-"
            shown.add_row(variant.experiment, variant.text, str(len(runs)), *cells, seconds)
        shown.caption = "mean ± half the 95 % interval (Student's t over n seeds); seconds per run"
        return shown

    configs = {name: variant.config for name, variant in by_name.items()}
    code, _ = run_experiments(configs, seeds, dataset, fallback_reason, workers, table)
    if code != 130 and any(finished.values()):
        _draw(by_name, finished, key, figure)
        ends = [name for name in names if finished[name]]
        if len(ends) > 1:
            print(f"differences, for example: make compare EXPERIMENTS={shlex.quote(f'{ends[0]} {ends[-1]}')}")
    return code


def _name(variant: Variant, key: str, dataset: Dataset, precision: str) -> str:
    """That of the experiment itself if the value is the one it has anyway: its runs are the same."""
    digest = dataset.digest
    hashes = {
        resolve_config(config, select(dataset, config.data), precision).hash(digest)
        for config in (variant.config, variant.plain)
    }
    return variant.experiment if len(hashes) == 1 else variant.name(key)


def _values(runs: Sequence[Run], metric: str) -> np.ndarray:
    return np.array([run.data.metrics[metric] for run in runs if metric in run.data.metrics])


def _with_interval(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    summary = summarise(values)
    half = f" ± {100 * (summary.ci_high - summary.mean):.2f}" if summary.n > 1 else ""
    return f"{100 * summary.mean:.2f}{half}"


def _draw(by_name: dict[str, Variant], finished: dict[str, list[Run]], key: str, figure: Path) -> None:
    panels: dict[str, dict[str, dict[float | str, np.ndarray]]] = {}
    for metric, label in METRICS.items():
        for name, variant in by_name.items():
            if len(accuracies := _values(finished[name], metric)):
                value = variant.value if type(variant.value) in (int, float) else variant.text
                panels.setdefault(label, {}).setdefault(variant.experiment, {})[value] = accuracies
    with atomic_write(figure) as path:
        plot_curve(panels, key).savefig(path, format=figure.suffix[1:], dpi=110)
    print(f"drawn in {figure}")
