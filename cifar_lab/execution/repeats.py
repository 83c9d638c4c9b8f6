"""Repeats over seeds: plan which runs to train, and summarise the finished ones."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UsageError
from cifar_lab.tracking import lifecycle, places, queries, recovery, store, summaries, views
from cifar_lab.tracking.provenance import run_tags
from cifar_lab.tracking.recovery import end_dead_runs

METRICS = ("val/acc", "val/loss", "test/acc", "test/acc_tta", "test/loss")


@dataclass(frozen=True)
class Repeats:
    """The runs of one experiment: its parent run, the requested seeds, and the runs of earlier commands."""

    name: str
    config: Config
    dataset: Dataset
    parent: Run
    seeds: tuple[int, ...]
    finished: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    continuing: frozenset[int]  # seeds with an unfinished run that can be continued
    damaged: tuple[str, ...]  # names of unfinished runs with damaged checkpoints
    tags: Mapping[str, str]  # of a run that starts now

    @property
    def missing(self) -> list[int]:
        """The requested seeds without a finished run."""
        done = {queries.seed_of(run) for run in self.finished}
        return [seed for seed in self.seeds if seed not in done]

    @property
    def differences(self) -> list[str]:
        """Which parts of the environment changed since finished runs, and those that start over, were trained."""
        over = [run for run in self.unfinished if queries.seed_of(run) in {*self.missing} - self.continuing]
        found = {name for run in [*self.finished, *over] for name in recovery.changed_environment(run, self.tags)}
        return [name for name in recovery.ENVIRONMENT.values() if name in found]


def plan(
    client: MlflowClient,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    datasets: Mapping[str, Dataset],
    machine: Mapping[str, str],
) -> list[Repeats]:
    """The repeats of `configs` with `seeds` on their `datasets`; creates missing parent runs.

    machine: the tags of the machine that trains them (see Pool). Raises UsageError, before anything is written, if a
    split is impossible or two configs are the same.
    """
    tags = {name: run_tags(name, config, datasets[name], machine) for name, config in configs.items()}
    if len({tag["config_hash"] for tag in tags.values()}) < len(tags):
        raise UsageError(f"two of the experiments {', '.join(configs)} have the same settings")
    repeats = []
    for name, config in configs.items():
        dataset = datasets[name]
        experiment_id = store.open_experiment(client, dataset.name)
        views.save_views(client, experiment_id)
        end_dead_runs(client, experiment_id, tags[name])
        parent = lifecycle.open_parent(client, experiment_id, name, config, dataset, tags[name])
        finished, unfinished = queries.finished_runs(client, parent), queries.unfinished_runs(client, parent)
        for run in finished:
            shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
        done = {queries.seed_of(run) for run in finished}
        wanted = [run for run in unfinished if queries.seed_of(run) in {*seeds} - done]
        continuing = frozenset(queries.seed_of(run) for run in wanted if recovery.can_continue(run, tags[name]))
        damaged = [run.info.run_name for run in wanted if recovery.is_damaged(run)]
        runs = tuple(seeds), tuple(finished), tuple(unfinished), continuing, tuple(damaged)
        repeats.append(Repeats(name, config, dataset, parent, *runs, tags[name]))
    return repeats


def summarise_repeats(client: MlflowClient, repeats: Repeats, interrupted: bool) -> list[Run]:
    """The finished runs of all seeds; logs their statistics on the parent, unless that is up to date, and ends it."""
    finished = queries.finished_runs(client, repeats.parent)
    parent = client.get_run(repeats.parent.info.run_id)
    if parent.info.status == "FINISHED" and not repeats.missing and parent.data.metrics.get("n") == len(finished):
        return finished
    if finished and not interrupted:
        log_statistics(client, parent, finished)
    complete = {queries.seed_of(run) for run in finished}.issuperset(repeats.seeds)
    lifecycle.mark(client, parent.info.run_id, "FINISHED" if complete else "KILLED" if interrupted else "FAILED")
    return finished


def log_statistics(client: MlflowClient, parent: Run, finished: Sequence[Run]) -> None:
    """Log the statistics of finished runs, which differ only in their seeds, on their parent."""
    logged = [metric for metric in METRICS if metric in finished[0].data.metrics]
    values = {m: {queries.seed_of(run): run.data.metrics[m] for run in finished} for m in logged}
    each = [queries.curves(client, run.info.run_id) for run in finished]
    curves = {
        stage: {m: np.stack([c[stage][m] for c in each]) for m in metrics if all(m in c[stage] for c in each)}
        for stage, metrics in each[0].items()
    }
    ended = max(run.info.end_time for run in finished)
    for point in client.get_metric_history(parent.info.run_id, "n"):
        if point.value != len(finished):  # runs were deleted: the new points must have the later time
            ended = max(ended, point.timestamp + 1)
    summaries.log_repeats(client, parent.info.run_id, values, curves, ended)
