"""The worker process: trains or continues one run at a time, tracks it, stops at a safe moment."""

import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from filelock import Timeout
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from pytorch_lightning import Callback

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset, open_dataset
from cifar_lab.data.selection import select
from cifar_lab.errors import UserError
from cifar_lab.processes import follow_parent
from cifar_lab.tracking import lifecycle, locks, places, queries, recovery, store, summaries, uploads
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.hardware import device_tags
from cifar_lab.training.train import Epoch, train

CLAIM_SECONDS = 1.0
SIGTERM_CODE = 128 + signal.SIGTERM
_open_once = functools.lru_cache(maxsize=1)(open_dataset)


def start_worker(settings: Sequence[Mapping[str, str]], taken: Synchronized) -> None:
    """Initialise a worker: the driver handles Ctrl-C, SIGTERM stops it, and it ends with the driver.

    settings: environment variables for each worker; taken: how many workers have theirs. They choose the GPU, so CUDA
    must not be initialised yet.
    """

    def stop(*_: object) -> None:
        _Worker.stopping = True
        if not _Worker.busy:
            os._exit(SIGTERM_CODE)

    with taken.get_lock():
        os.environ.update(settings[taken.value])
        taken.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    follow_parent()


@contextmanager
def working(tags: Mapping[str, str]) -> Iterator[MlflowClient]:
    """Lock the run with these tags while this process trains it; a SIGTERM waits for a safe moment.

    Raises Timeout if another process is training it, and turns any other error into a UserError of one line.
    """
    _Worker.busy = True
    try:
        with locks.claimed(tags, CLAIM_SECONDS):
            yield store.connect()
    except (Timeout, UserError):
        raise
    except Exception as error:
        tracked = lifecycle.ERROR in getattr(error, "__notes__", ())
        place = f"the run's artifact {lifecycle.ERROR}" if tracked else "--debug"
        unknown = f"{type(error).__name__}: {error} ({place} has the traceback)"
        raise UserError(f"{store.explain(error) or unknown}; start again to continue") from error
    finally:
        _Worker.busy = False
        if _Worker.stopping:
            os._exit(SIGTERM_CODE)  # after a return the pool would submit the next run


def train_one(parent: Run, config: Config, tags: Mapping[str, str], dataset: Path | Dataset) -> Run | None:
    """Train or continue the run or trial with these tags under `parent`; returns the finished run.

    None if another process is training it. dataset: a data set or its cache folder. Raises UserError with a message of
    one line.
    """
    part = "trial" if parent.data.tags.get("kind") == "sweep" else "seed"  # the tag that identifies it under its parent
    try:
        with working(tags) as client:
            before = queries.children(client, parent, f"tags.{part} = '{tags[part]}'")
            for run in before:
                if run.info.status == "FINISHED":
                    return run
            images = opened(dataset, config)
            callbacks: list[Callback] = [Stop()]
            if tags["kind"] == "trial":
                from cifar_lab.execution.trial import Prune  # imports Optuna

                callbacks.append(
                    Prune(tags["study"], int(tags["trial"]), decides=tags["seeds"].split(",")[0] == tags["seed"])
                )
            run = run_to_train(client, parent, before, tags, f"{parent.info.run_name}-{part}{tags[part]}")
            train_tracked(client, run, config, images, tags["accelerator"], callbacks=callbacks)
            return client.get_run(run.info.run_id)
    except Timeout:
        return None


def opened(dataset: Path | Dataset, config: Config) -> Dataset:
    """The images that `config` selects from a data set or its cache folder, which is read once per process."""
    return select(dataset if isinstance(dataset, Dataset) else _open_once(dataset), config.data)


def run_to_train(client: MlflowClient, parent: Run, before: Sequence[Run], tags: Mapping[str, str], name: str) -> Run:
    """The last of the runs `before` that can be continued, or else a new run; then their checkpoints are deleted.

    The machine tags are replaced by those of this process, which may be on a node of a cluster or on another GPU.
    """
    if "cluster" in tags:
        tags = {**tags, **machine_tags(tags["accelerator"])}
    elif tags["accelerator"] == "cuda":
        tags = {**tags, **device_tags("cuda")}
    ours = [run for run in before if recovery.is_ours(run, tags)]
    for run in reversed(ours):
        if recovery.can_continue(run, tags):
            if "cluster" in tags:
                uploads.fetch_checkpoint(client, run.info.run_id)
            return run
    for run in ours:
        shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
    tags = {**tags, "mlflow.parentRunId": parent.info.run_id}
    return lifecycle.create_run(client, parent.info.experiment_id, name, tags)


def train_tracked(
    client: MlflowClient,
    run: Run,
    config: Config,
    dataset: Dataset,
    accelerator: str,
    report: Callable[[Sequence[Epoch]], None] = lambda epochs: None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train or continue `run` and track it; its checkpoint becomes an artifact.

    A trial logs only its epochs and does not score the test set; if it was stopped early, it is tagged as pruned.
    """

    def report_both(epochs: Sequence[Epoch]) -> None:
        upload.report(epochs)
        report(epochs)

    checkpoint, seed = places.checkpoint_of(run.info.run_id), int(run.data.tags["seed"])
    trial, on_cluster = run.data.tags["kind"] == "trial", "cluster" in run.data.tags
    with lifecycle.run_lifecycle(client, run, config, dataset) as run_id:
        places.mark_store(run_id)
        with uploads.EpochUploads(client, run_id, dataset, checkpoint if on_cluster else None) as upload:
            result = train(config, seed, dataset, checkpoint, accelerator, report_both, callbacks, test=not trial)
        if not trial:
            summaries.log_result(client, run_id, result, dataset, checkpoint)
        elif len(result.epochs) < config.trainer.epochs:
            lifecycle.tag_pruned(client, run_id)
        if on_cluster:
            uploads.drop_checkpoints(client, run_id)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)


class _Worker:
    """State of this worker process: a SIGTERM ends it at once if it is idle, else at a safe moment."""

    busy = False
    stopping = False


class Stop(Callback):
    """Stops the training between two batches after a SIGTERM."""

    def on_train_batch_start(self, *_: object) -> None:
        if _Worker.stopping:
            raise SystemExit(SIGTERM_CODE)
