"""Unfinished runs: which can be continued, which belong to this folder, which have died."""

import contextlib
import shutil
from collections.abc import Mapping

from filelock import Timeout
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.files import is_whole
from cifar_lab.tracking import lifecycle, locks, places, queries

# What, besides config, images and seed, may change a run's bits; a run is continued only if all of it is unchanged.
ENVIRONMENT = {
    "code_digest": "code",
    "lock_digest": "lock file",
    "accelerator": "accelerator",
    "device": "device",
    "driver": "driver",
    "cudnn": "cuDNN",
    "tf32": "TF32",
    "python": "Python",
    "torch": "torch",
    "pytorch_lightning": "pytorch_lightning",
}


def changed_environment(run: Run, tags: Mapping[str, str]) -> list[str]:
    """The names of the parts of ENVIRONMENT in which `run` and `tags` differ."""
    return [name for tag, name in ENVIRONMENT.items() if run.data.tags.get(tag) != tags.get(tag)]


def can_continue(run: Run, tags: Mapping[str, str]) -> bool:
    """Whether a process with these tags can continue an unfinished run to the same bits as without interruption."""
    checkpoint, begun = places.checkpoint_of(run.info.run_id), "train/acc" in run.data.metrics
    there = is_whole(checkpoint) if checkpoint.exists() else not begun
    there = there or "cluster" in tags  # the checkpoints are on the tracking server
    return is_ours(run, tags) and there and not changed_environment(run, tags)


def is_damaged(run: Run) -> bool:
    """Whether an unfinished run has a damaged checkpoint."""
    checkpoint = places.checkpoint_of(run.info.run_id)
    return checkpoint.exists() and not is_whole(checkpoint)


def is_ours(run: Run, tags: Mapping[str, str]) -> bool:
    """Whether only this folder trains `run`: it is in a database file, or was started from the folder in `tags`.

    On a server, runs on a cluster and runs on this machine are kept apart.
    """
    return places.is_local() or all(run.data.tags.get(tag) == tags.get(tag) for tag in ("folder", "cluster"))


def end_dead_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Mark as KILLED the runs whose process died without marking them, if they are ours (see is_ours).

    A parent that is still RUNNING is marked by the next command for its repeats.
    """
    for run in queries.running_runs(client, experiment_id):
        with contextlib.suppress(Timeout), locks.claimed(run.data.tags):
            if is_ours(run, tags) and client.get_run(run.info.run_id).info.status == "RUNNING":
                lifecycle.mark(client, run.info.run_id, "KILLED")
                if run.data.tags["kind"] == "reproduction":  # never continued
                    shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
