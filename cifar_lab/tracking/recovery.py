"""Unfinished runs: which can go on, which are ours, which have died."""

import contextlib
import shutil
from collections.abc import Mapping

from filelock import Timeout
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.files import is_whole
from cifar_lab.tracking import lifecycle, locks, places, queries

# What besides config, images and seed may change a run's bits: a run is continued only where all of it is the same.
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
    """Names of the parts of the ENVIRONMENT in which `run` and `tags` differ."""
    return [name for tag, name in ENVIRONMENT.items() if run.data.tags.get(tag) != tags.get(tag)]


def can_continue(run: Run, tags: Mapping[str, str]) -> bool:
    """Whether an unfinished run, continued by a process with these tags, ends with the bits of one in one go."""
    checkpoint, begun = places.checkpoint_of(run.info.run_id), "train/acc" in run.data.metrics
    there = is_whole(checkpoint) if checkpoint.exists() else not begun
    there = there or "cluster" in tags  # whose runs have their checkpoints on the server
    return is_ours(run, tags) and there and not changed_environment(run, tags)


def is_damaged(run: Run) -> bool:
    """Whether an unfinished run has a checkpoint that can't be used."""
    checkpoint = places.checkpoint_of(run.info.run_id)
    return checkpoint.exists() and not is_whole(checkpoint)


def is_ours(run: Run, tags: Mapping[str, str]) -> bool:
    """Whether nobody else can be training `run`: it is in a database of this machine, or of the folder in `tags`.

    The runs that a folder has on a cluster are apart from its others.
    """
    return places.is_local() or all(run.data.tags.get(tag) == tags.get(tag) for tag in ("folder", "cluster"))


def end_dead_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Mark as KILLED the runs whose process died without a word, if they are ours (see is_ours).

    A parent that stayed RUNNING gets its end from the next command that asks for its repeats.
    """
    for run in queries.running_runs(client, experiment_id):
        with contextlib.suppress(Timeout), locks.claimed(run.data.tags):
            if is_ours(run, tags) and client.get_run(run.info.run_id).info.status == "RUNNING":
                lifecycle.mark(client, run.info.run_id, "KILLED")
                if run.data.tags["kind"] == "reproduction":  # it is not continued
                    shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
