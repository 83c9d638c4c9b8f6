"""One run in a process of its own: claimed, trained or continued, tracked, stopped where that is safe."""

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
    """Leave Ctrl-C to the driver, stop on SIGTERM, never outlive the driver.

    settings: environment variables, for each worker its own, of which so many are taken. They choose its GPU, so none
    may be in use here yet.
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
    """Within it this process trains the run with these tags, and no other does; a SIGTERM waits for a safe moment.

    Raises Timeout if another process is training it, and for any error a UserError that says it in one line.
    """
    _Worker.busy = True
    try:
        with locks.claimed(tags, CLAIM_SECONDS):
            yield store.connect()
    except (Timeout, UserError):
        raise
    except Exception as error:
        traceback = (
            f"the run's artifact {lifecycle.ERROR}" if lifecycle.ERROR in getattr(error, "__notes__", ()) else "--debug"
        )
        unknown = f"{type(error).__name__}: {error} ({traceback} has the traceback)"
        raise UserError(f"{store.explain(error) or unknown}; start again to continue") from error
    finally:
        _Worker.busy = False
        if _Worker.stopping:
            os._exit(SIGTERM_CODE)  # returning would let the pool hand this process the next run


def train_one(parent: Run, config: Config, tags: Mapping[str, str], dataset: Path | Dataset) -> Run | None:
    """Train and track the run or trial with these tags under `parent`, or what is left of it; gives it when finished.

    The body of a worker process. dataset: itself, or its cache folder. None if another process is training the run.
    Raises UserError, which says in one line what went wrong.
    """
    part = "trial" if tags["kind"] == "trial" else "seed"  # that tells it from the others under its parent
    try:
        with working(tags) as client:
            before = queries.children(client, parent, f"tags.{part} = '{tags[part]}'")
            for run in before:
                if run.info.status == "FINISHED":
                    return run
            images, callbacks = opened(dataset, config), [Stop()]
            if part == "trial":
                from cifar_lab.execution.trial import Prune  # with Optuna, which other runs do not need

                callbacks.append(Prune(tags["study"], int(tags["trial"])))
            run = run_to_train(client, parent, before, tags, f"{parent.info.run_name}-{part}{tags[part]}")
            train_tracked(client, run, config, images, tags["accelerator"], callbacks=callbacks)
            return client.get_run(run.info.run_id)
    except Timeout:
        return None


def opened(dataset: Path | Dataset, config: Config) -> Dataset:
    """The images for `config` of a data set, or of the one in a cache folder, which is read once per process."""
    return select(dataset if isinstance(dataset, Dataset) else _open_once(dataset), config.data)


def run_to_train(client: MlflowClient, parent: Run, before: Sequence[Run], tags: Mapping[str, str], name: str) -> Run:
    """The unfinished one of the runs `before` that can go on, or a new one; checkpoints of the others are of no use.

    The machine in `tags` gives way to that of this process: a node of a cluster, or a GPU of several.
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
    """Train `run`, or what is left of it, and track that; its checkpoint becomes an artifact.

    A trial does not see the test set, and leaves its metrics only; one that ended early is tagged as pruned.
    """

    def report_both(epochs: Sequence[Epoch]) -> None:
        upload.report(epochs)
        report(epochs)

    checkpoint, seed = places.checkpoint_of(run.info.run_id), int(run.data.tags["seed"])
    trial, on_cluster = run.data.tags["kind"] == "trial", "cluster" in run.data.tags
    with lifecycle.run_lifecycle(client, run, config, dataset) as run_id:
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
    """State of this worker process: a SIGTERM ends it at once while it is idle, else where that is safe."""

    busy = False
    stopping = False


class Stop(Callback):
    """Ends the training between two batches after a SIGTERM."""

    def on_train_batch_start(self, *_: object) -> None:
        if _Worker.stopping:
            raise SystemExit(SIGTERM_CODE)
