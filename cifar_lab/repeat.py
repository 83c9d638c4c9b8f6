"""Many runs: leave out what is finished, train the rest in parallel, summarise over seeds."""

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pytorch_lightning import Callback
from rich.console import Console

from cifar_lab import runs, store, tracking
from cifar_lab.config import Config, UsageError, UserError
from cifar_lab.datasets import Dataset, open_dataset
from cifar_lab.progress import Progress
from cifar_lab.train import train

POLL_SECONDS = 1.0
STOP_SECONDS = 15.0
SIGTERM_CODE = 128 + signal.SIGTERM
METRICS = ("val/acc", "val/loss", "test/acc", "test/loss")


@dataclass(frozen=True)
class Repeats:
    """One experiment file's runs: their parent in the store, the seeds asked for, all that finished before."""

    name: str
    config: Config
    parent: Run
    seeds: tuple[int, ...]
    finished: tuple[Run, ...]
    tags: Mapping[str, str]  # that a run started now would carry

    @property
    def missing(self) -> list[int]:
        """The seeds asked for that no run has finished."""
        done = {int(run.data.tags["seed"]) for run in self.finished}
        return [seed for seed in self.seeds if seed not in done]

    @property
    def differences(self) -> list[str]:
        """In what the finished runs differ from runs started now, though their config is the same."""
        names = {
            "mlflow.source.git.commit": "git commit",
            "git_dirty": "uncommitted code",
            "accelerator": "accelerator",
        }
        different = {tag for tag in names for run in self.finished if run.data.tags.get(tag) != self.tags[tag]}
        if self.finished and self.tags["git_dirty"] == "true":
            different.add("git_dirty")
        return [names[tag] for tag in names if tag in different]


def plan(
    client: MlflowClient,
    experiment_id: str,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    dataset: Dataset,
    accelerator: str,
) -> list[Repeats]:
    """The repeats that `configs` and `seeds` ask for; a config that never ran gets its parent run.

    Raises UsageError, before anything is written, if a split is impossible or two configs are the same.
    """
    tags = {name: tracking.run_tags(name, config, dataset, accelerator) for name, config in configs.items()}
    if len({tag["config_hash"] for tag in tags.values()}) < len(tags):
        raise UsageError(f"two of the experiments {', '.join(configs)} are the same: no setting differs")
    repeats = []
    for name, config in configs.items():
        parent = runs.find_parent(client, experiment_id, tags[name]["config_hash"])
        if parent is None:
            parent = tracking.start_parent(client, experiment_id, name, config, tags[name])
        repeats.append(
            Repeats(name, config, parent, tuple(seeds), tuple(runs.finished_runs(client, parent)), tags[name])
        )
    return repeats


def choose_jobs(jobs: int | None, repeats: Sequence[Repeats], accelerator: str) -> int:
    """How many runs at once: `jobs`, or as many as the cores hold at each run's number of threads; one on a GPU."""
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = max(1, cores // max(r.config.trainer.threads for r in repeats)) if accelerator == "cpu" else 1
    return max(1, min(jobs, sum(len(r.missing) for r in repeats)))


def train_missing(
    client: MlflowClient, repeats: Sequence[Repeats], dataset: Dataset, accelerator: str, jobs: int, console: Console
) -> tuple[dict[str, str], bool]:
    """Train every missing run, `jobs` at a time; returns why runs failed, by run name, and whether it was interrupted.

    One failure does not stop the others; Ctrl-C or SIGTERM ends the running ones as KILLED.
    """
    for r in repeats:
        if r.missing:
            tracking.reopen_parent(client, r.parent.info.run_id)
    failed: dict[str, str] = {}
    total = sum(len(r.missing) for r in repeats)
    if not total:
        return failed, False
    # a fork server's workers start at once, but CUDA does not survive a fork
    context = multiprocessing.get_context("forkserver" if accelerator == "cpu" else "spawn")
    parents = {r.parent: r.config.trainer.epochs for r in repeats if r.missing}
    with (
        ProcessPoolExecutor(jobs, context, _start_worker) as pool,
        Progress(client, console, parents, jobs) as progress,
    ):
        try:
            pending = {
                pool.submit(train_one, r.parent.info.run_id, r.name, r.config, seed, dataset.folder, accelerator): (
                    r,
                    seed,
                )
                for r in repeats
                for seed in r.missing
            }
            while pending:
                for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
                    r, seed = pending.pop(future)
                    if error := future.exception():
                        failed[f"{r.name}-seed{seed}"] = _reason(error)
                        console.print(f"{r.name}-seed{seed} failed: {_reason(error)}", soft_wrap=True)
                with contextlib.suppress(MlflowException):  # the display is not worth a run
                    progress.update(Counter(r.parent.info.run_name for r, _ in pending.values()), total)
        except BaseException as error:
            _stop(pool)
            if isinstance(error, KeyboardInterrupt):
                return failed, True
            raise
    return failed, False


def train_one(parent_id: str, name: str, config: Config, seed: int, dataset_folder: Path, accelerator: str) -> None:
    """Train and track one run; the body of a worker process."""
    _Worker.busy = True
    try:
        client = store.connect()
        dataset = open_dataset(dataset_folder)
        with (
            TemporaryDirectory() as folder,
            tracking.child_run(client, parent_id, name, seed, config, dataset, accelerator) as run_id,
        ):
            logger = tracking.RunLogger(run_id=run_id, tracking_uri=client.tracking_uri)
            callbacks = [_Stop(), tracking.ConfusionImages(client, run_id, dataset.classes)]
            result = train(config, seed, dataset, Path(folder), accelerator, logger, callbacks)
            tracking.log_result(client, run_id, result, dataset.classes, runs.curves(client, run_id))
    finally:
        _Worker.busy = False
        if _Worker.stopping:
            os._exit(SIGTERM_CODE)  # returning would let the pool hand this process the next run


class _Worker:
    """State of this worker process: a SIGTERM ends it at once while it is idle, else where that is safe."""

    busy = False
    stopping = False


class _Stop(Callback):
    def on_train_batch_start(self, *_: object) -> None:
        if _Worker.stopping:
            raise SystemExit(SIGTERM_CODE)


def summarise_repeats(client: MlflowClient, repeats: Repeats, interrupted: bool) -> list[Run]:
    """The finished runs of all seeds; if they are news, logs their statistics to the parent and ends it."""
    finished = runs.finished_runs(client, repeats.parent)
    parent = client.get_run(repeats.parent.info.run_id)
    if parent.info.status == "FINISHED" and not repeats.missing and parent.data.metrics.get("n") == len(finished):
        return finished
    if finished and not interrupted:
        values = {m: {int(run.data.tags["seed"]): run.data.metrics[m] for run in finished} for m in METRICS}
        each = [runs.curves(client, run.info.run_id) for run in finished]
        curves = {
            stage: {metric: np.stack([curve[stage][metric] for curve in each]) for metric in ("loss", "acc")}
            for stage in each[0]
        }
        tracking.log_repeats(client, parent.info.run_id, values, curves)
    complete = {int(run.data.tags["seed"]) for run in finished}.issuperset(repeats.seeds)
    tracking.end_run(client, parent.info.run_id, "FINISHED" if complete else "KILLED" if interrupted else "FAILED")
    return finished


def _start_worker() -> None:
    """Leave Ctrl-C to the driver, stop on SIGTERM, and never outlive the driver."""

    def stop(*_: object) -> None:
        _Worker.stopping = True
        if not _Worker.busy:
            os._exit(SIGTERM_CODE)

    def follow_driver() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    Thread(target=follow_driver, daemon=True).start()


def _stop(pool: Executor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(STOP_SECONDS)
        worker.kill()


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return "a worker process died (out of memory?); start again to train what is missing"
    return f"{type(error).__name__}: {error} (traceback in the run's artifact error.txt)"
