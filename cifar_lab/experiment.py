"""The main job, from checked arguments to the last line on the terminal: plan, train, summarise, name the best run."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from cifar_lab import champion, repeat, runs, store
from cifar_lab.cluster import Cluster
from cifar_lab.comparison import summarise
from cifar_lab.config import Config
from cifar_lab.datasets import Dataset, select
from cifar_lab.pool import Pool
from cifar_lab.progress import clock
from cifar_lab.train import resolve_config


def run_experiments(
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    dataset: Dataset,
    stand_in_because: str,
    workers: Pool | Cluster,
) -> tuple[int, list[repeat.Repeats]]:
    """Train what is missing of `configs` times `seeds`; gives the plan and 0, 1 if a run failed, 130 if interrupted."""
    console = Console(highlight=False, markup=False)
    datasets = {name: select(dataset, config.data) for name, config in configs.items()}
    configs = {name: resolve_config(config, datasets[name], workers.precision) for name, config in configs.items()}
    announcement = _announcement(datasets.values(), stand_in_because)
    console.print(announcement)
    client = store.connect(make=True)
    with store.planning():
        plan = repeat.plan(client, configs, seeds, datasets, workers.tags)
    for item in plan:
        going_on = f", {len(item.continuing)} of them continued" if item.continuing else ""
        to_train = f"{len(item.missing)} of {len(item.seeds)} runs to train on {workers.accelerator}"
        console.print(f"{item.name}: {to_train}{going_on}")
        for name in item.damaged:
            console.print(f"  the checkpoint of {name} is damaged, so it starts anew")
        if differences := ", ".join(item.differences):
            console.print(
                f"  not the same as before: {differences}. Finished runs are kept, unfinished ones start anew"
            )
    failed, interrupted = repeat.train_missing(client, plan, workers, console)
    if interrupted:
        with contextlib.suppress(MlflowException), store.impatient():
            console.print(_results(client, plan, interrupted))
    else:
        console.print(_results(client, plan, interrupted))
        for items in _by_dataset(plan).values():
            for line in _crown(client, items):
                console.print(line, soft_wrap=True)
        console.print("compare: make ui")
    if stand_in_because:
        console.print(announcement)
    for name, reason in failed.items():
        console.print(f"{name} failed: {reason}", soft_wrap=True)
    if interrupted:
        console.print("interrupted; the same command continues where it stopped")
    return 130 if interrupted else 1 if failed else 0, plan


def _announcement(datasets: Iterable[Dataset], stand_in_because: str) -> Panel:
    lines = []
    for dataset in datasets:
        counts = f"{len(dataset.labels['train']):,} training and {len(dataset.labels['test']):,} test images"
        lines.append(f"{dataset.title}: {counts}, MLflow experiment {dataset.name!r}")
    text = "\n".join(dict.fromkeys(lines))
    if not stand_in_because:
        return Panel(text)
    warning = f"NOT CIFAR-10. {stand_in_because}. A stand-in is used instead; its results say nothing about CIFAR-10."
    return Panel(f"{warning}\n{text}", style="bold yellow")


def _results(client: MlflowClient, plan: Sequence[repeat.Repeats], interrupted: bool) -> Table:
    shown = ["val/acc", "test/acc"]
    if any(item.config.trainer.tta for item in plan):
        shown.append("test/acc_tta")
    table = Table(
        "experiment",
        "n",
        *(f"{metric.replace('/', ' ').replace('_', ' ')}, mean ± std" for metric in shown),
        "time per run",
    )
    for item in plan:
        with store.planning():  # another command may have trained the same runs, and be here too
            finished = repeat.summarise_repeats(client, item, interrupted)
        accuracies = [
            str(summarise(values)) if (values := [r.data.metrics[m] for r in finished if m in r.data.metrics]) else "-"
            for m in shown
        ]
        seconds = [runs.history(client, run.info.run_id, "epoch_seconds").sum() for run in finished]
        table.add_row(item.name, str(len(finished)), *accuracies, clock(np.mean(seconds)) if finished else "-")
    return table


def _by_dataset(plan: Sequence[repeat.Repeats]) -> dict[str, list[repeat.Repeats]]:
    found: dict[str, list[repeat.Repeats]] = {}
    for item in plan:
        found.setdefault(item.dataset.name, []).append(item)
    return found


def _crown(client: MlflowClient, items: Sequence[repeat.Repeats]) -> list[str]:
    """Make the best run on the data set of these repeats its champion; the lines that name it."""
    dataset, experiment_id = items[0].dataset, items[0].parent.info.experiment_id
    item = next((item for item in items if item.config.data.val_size), None)
    if item is None:
        return ["no images are held out (data.val_size = 0), so there is nothing to choose a best run by"]
    ranking = runs.ranked_runs(client, experiment_id, item.tags["data_digest"], item.tags["split_digest"])
    if not ranking:
        return ["no run has finished, so there is no best run"]
    best = ranking[0]
    with store.planning():
        crowned = champion.crown(client, best, dataset)
    val, test = (f"{stage} acc {best.data.metrics[f'{stage}/acc']:.2%}" for stage in ("val", "test"))
    line = f"best run: {best.info.run_name}, highest val acc of all on these images: {val}, {test}"
    if not crowned:
        return [line, f"the champion of {dataset.name} stays: it was chosen on other validation images"]
    model = f"models:/{champion.model_name(client, dataset.name)}@{runs.ALIAS}"
    return [line, f'use it: make predict MODEL={model} IMAGES="photos/*.jpg", or make serve MODEL={model}']
