"""Many runs: leave out what is finished, continue what is not, train the rest in parallel, summarise over seeds."""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from filelock import Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.console import Console

from cifar_lab import results, runs, store, tracking, ui
from cifar_lab.cluster import Cluster
from cifar_lab.config import Config, UsageError
from cifar_lab.datamodule import epoch_costs
from cifar_lab.datasets import Dataset
from cifar_lab.pool import Pool, Submit
from cifar_lab.progress import Progress
from cifar_lab.provenance import run_tags
from cifar_lab.worker import train_one

POLL_SECONDS = 1.0
DEATHS = 3  # of workers in a row, without a run that ends: there is no use in going on
DIED = "its worker process died again and again (out of memory?); start again to continue it, with fewer --jobs"
METRICS = ("val/acc", "val/loss", "test/acc", "test/acc_tta", "test/loss")


@dataclass(frozen=True)
class Repeats:
    """One experiment file's runs: their parent in the store, the seeds asked for, all that finished before."""

    name: str
    config: Config
    dataset: Dataset
    parent: Run
    seeds: tuple[int, ...]
    finished: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    tags: Mapping[str, str]  # that a run started now would carry

    @property
    def missing(self) -> list[int]:
        """The seeds asked for that no run has finished."""
        done = {int(run.data.tags["seed"]) for run in self.finished}
        return [seed for seed in self.seeds if seed not in done]

    @property
    def continuing(self) -> list[int]:
        """The missing seeds of which an unfinished run goes on."""
        able = {int(run.data.tags["seed"]) for run in self.unfinished if runs.can_continue(run, self.tags)}
        return [seed for seed in self.missing if seed in able]

    @property
    def damaged(self) -> list[str]:
        """Names of the runs that can't go on because their checkpoint is damaged."""
        left = [(run, store.checkpoint_of(run.info.run_id)) for run in self.unfinished]
        return [run.info.run_name for run, checkpoint in left if checkpoint.exists() and not store.is_whole(checkpoint)]

    @property
    def differences(self) -> list[str]:
        """What is not now as it was for runs that finished or can't go on, though their config is the same."""
        anew = [run for run in self.unfinished if int(run.data.tags["seed"]) in {*self.missing} - {*self.continuing}]
        found = {name for run in [*self.finished, *anew] for name in runs.circumstances_that_differ(run, self.tags)}
        return [name for name in runs.CIRCUMSTANCES.values() if name in found]


def plan(
    client: MlflowClient,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    datasets: Mapping[str, Dataset],
    machine: Mapping[str, str],
) -> list[Repeats]:
    """The repeats that `configs` and `seeds` ask for on their `datasets`; a config that never ran gets its parent run.

    machine: tags of what trains them (see Pool).
    Raises UsageError, before anything is written, if a split is impossible or two configs are the same.
    """
    tags = {name: run_tags(name, config, datasets[name], machine) for name, config in configs.items()}
    if len({tag["config_hash"] for tag in tags.values()}) < len(tags):
        raise UsageError(f"two of the experiments {', '.join(configs)} are the same: no setting differs")
    repeats = []
    for name, config in configs.items():
        dataset = datasets[name]
        experiment_id = store.open_experiment(client, dataset.name)
        ui.save_views(client, experiment_id)
        end_dead_runs(client, experiment_id, tags[name])
        parent = tracking.open_parent(client, experiment_id, name, config, dataset, tags[name])
        finished, unfinished = runs.finished_runs(client, parent), runs.unfinished_runs(client, parent)
        for run in finished:
            shutil.rmtree(store.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
        repeats.append(
            Repeats(name, config, dataset, parent, tuple(seeds), tuple(finished), tuple(unfinished), tags[name])
        )
    return repeats


def end_dead_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Mark as KILLED the runs whose process died without a word, if they are ours (see runs.is_ours).

    A parent that stayed RUNNING gets its end from the next command that asks for its repeats.
    """
    for run in runs.running_runs(client, experiment_id):
        with contextlib.suppress(Timeout), store.claimed(run.data.tags):
            if runs.is_ours(run, tags) and client.get_run(run.info.run_id).info.status == "RUNNING":
                tracking.mark(client, run.info.run_id, "KILLED")
                if run.data.tags["kind"] == "reproduction":  # it is not continued
                    shutil.rmtree(store.checkpoint_of(run.info.run_id).parent, ignore_errors=True)


def train_missing(
    client: MlflowClient, repeats: Sequence[Repeats], workers: Pool | Cluster, console: Console
) -> tuple[dict[str, str], bool]:
    """Train every missing run; returns why runs failed, by run name, and whether it was interrupted.

    One failure does not stop the others, nor does the death of a worker: the runs then go on in new workers. Ctrl-C or
    SIGTERM ends the running ones as KILLED. A run that another process trains is waited for.
    """
    failed: dict[str, str] = {}
    left = [(r, seed) for r in repeats for seed in r.missing]
    if not left:
        return failed, False
    parents = {r.parent: epoch_costs(r.config) for r in repeats if r.missing}
    total, deaths = len(left), 0
    trainers = [r.config.trainer for r, _ in left]
    needs = max(t.devices for t in trainers), max(t.threads for t in trainers), total
    with Progress(client, console, parents, workers.at_once(*needs)) as progress:

        def end_dead() -> None:
            with contextlib.suppress(MlflowException):  # it is done again at the next start
                for r in repeats:
                    end_dead_runs(client, r.parent.info.experiment_id, r.tags)

        def show() -> None:
            with contextlib.suppress(MlflowException):  # the display is not worth a run
                progress.update(Counter(r.parent.info.run_name for r, _ in left), total)

        try:
            for r in repeats:
                if r.missing:
                    tracking.mark(client, r.parent.info.run_id, "RUNNING")
            while left and deaths < DEATHS:
                before = len(left)
                try:
                    with workers.open(*needs) as submit:
                        _train_in_workers(left, failed, submit, console, show)
                except BrokenProcessPool:
                    console.print("a worker process died; its runs go on in new ones", soft_wrap=True)
                    end_dead()
                    deaths = deaths + 1 if len(left) == before else 1
        except KeyboardInterrupt:
            with store.impatient():
                end_dead()
            return failed, True
    return failed | {f"{r.name}-seed{seed}": DIED for r, seed in left}, False


def _train_in_workers(
    left: list[tuple[Repeats, int]],
    failed: dict[str, str],
    submit: Submit,
    console: Console,
    show: Callable[[], None],
) -> None:
    """Submit the runs in `left` to workers; takes out what is over, notes in `failed` why it failed.

    Raises BrokenProcessPool if a worker dies and the runs have to be submitted again.
    """

    def start(r: Repeats, seed: int) -> Future:
        return submit(train_one, r.parent, r.config, {**r.tags, "seed": str(seed)}, r.dataset.folder)

    pending, waiting = {start(*job): job for job in left}, set()
    while pending:
        for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
            r, seed = job = pending.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            name = f"{r.name}-seed{seed}"
            if error:
                logging.getLogger("cifar_lab").debug("%s", name, exc_info=error)
                failed[name] = str(error)
                console.print(f"{name} failed: {error}", soft_wrap=True)
            elif not future.result():
                if name not in waiting:
                    console.print(f"{name} is being trained by another process", soft_wrap=True)
                waiting.add(name)
                pending[start(*job)] = job  # last in the queue
                continue
            left.remove(job)
        show()


def summarise_repeats(client: MlflowClient, repeats: Repeats, interrupted: bool) -> list[Run]:
    """The finished runs of all seeds; if they are news, logs their statistics to the parent and ends it."""
    finished = runs.finished_runs(client, repeats.parent)
    parent = client.get_run(repeats.parent.info.run_id)
    if parent.info.status == "FINISHED" and not repeats.missing and parent.data.metrics.get("n") == len(finished):
        return finished
    if finished and not interrupted:
        logged = [metric for metric in METRICS if metric in finished[0].data.metrics]
        values = {m: {int(run.data.tags["seed"]): run.data.metrics[m] for run in finished} for m in logged}
        each = [runs.curves(client, run.info.run_id) for run in finished]
        curves = {
            stage: {metric: np.stack([curve[stage][metric] for curve in each]) for metric in ("loss", "acc")}
            for stage in each[0]
        }
        ended = max(run.info.end_time for run in finished)
        for point in client.get_metric_history(parent.info.run_id, "n"):
            if point.value != len(finished):  # of runs deleted since: the new points have to be the later ones
                ended = max(ended, point.timestamp + 1)
        losses = results.train_loss(repeats.config.optim.label_smoothing, repeats.config.model.one_vs_one)
        results.log_repeats(client, parent.info.run_id, values, curves, losses, ended)
    complete = {int(run.data.tags["seed"]) for run in finished}.issuperset(repeats.seeds)
    tracking.mark(client, parent.info.run_id, "FINISHED" if complete else "KILLED" if interrupted else "FAILED")
    return finished
