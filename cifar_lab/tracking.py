"""What is written of parent and child runs: parameters, metrics, tags, artifacts, and how they end."""

import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from cifar_lab import runs
from cifar_lab.artifacts import log_texts
from cifar_lab.config import Config, UserError
from cifar_lab.datasets import Dataset
from cifar_lab.heatmaps import confusion_plot
from cifar_lab.store import checkpoint_of, explain, impatient, is_whole
from cifar_lab.train import Epoch, load_checkpoint

ERROR = "error.txt"  # artifact with the traceback of a failed run
UNFINISHED = "unfinished"  # artifacts of a run on a cluster: its last two checkpoints


def open_parent(
    client: MlflowClient, experiment_id: str, name: str, config: Config, dataset: Dataset, tags: Mapping[str, str]
) -> Run:
    """The run that holds the statistics over the seeds of a config; a new one if the config never ran."""
    run = runs.find_parent(client, experiment_id, tags["config_hash"])
    if run is None:
        run = create_run(client, experiment_id, name, {**tags, "kind": "repeats"})
    _describe(client, run.info.run_id, config.flat(), config, dataset)
    return client.get_run(run.info.run_id)


def open_sweep(
    client: MlflowClient,
    experiment_id: str,
    tags: Mapping[str, str],
    base: Config,
    dataset: Dataset,
    ranges: Mapping[str, object],
) -> Run:
    """The run that holds the trials of a sweep, named after its study; its parameters say what is searched."""
    run = runs.find_sweep(client, experiment_id, tags["study"])
    if run is None:
        run = create_run(client, experiment_id, tags["study"], {**tags, "kind": "sweep"})
    _describe(client, run.info.run_id, {**base.flat(), **ranges}, base, dataset)
    return client.get_run(run.info.run_id)


def tag_pruned(client: MlflowClient, run_id: str) -> None:
    """Say of a trial that it was cut short."""
    client.set_tag(run_id, "pruned", "true")


def _describe(
    client: MlflowClient, run_id: str, parameters: Mapping[str, object], config: Config, dataset: Dataset
) -> None:
    """Log what goes into a run. To be done for the parent first: MLflow fails if two runs name new images at once."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
    log_texts(client, run_id, {"config.toml": config.toml()})
    client.log_inputs(run_id, _inputs(dataset))


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """A new run, and one only, however often the line to the server breaks."""
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    for twin in runs.twins(client, run):  # MLflow repeats a call whose answer was lost
        client.delete_run(twin.info.run_id)
    return run


def fetch_checkpoint(client: MlflowClient, run_id: str) -> None:
    """Let the last checkpoint that a run on a cluster left with the server be here, unless this node has its own."""
    checkpoint = checkpoint_of(run_id)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if is_whole(checkpoint):
        return
    checkpoint.unlink(missing_ok=True)
    found = {}
    for file in client.list_artifacts(run_id, UNFINISHED):
        path = Path(client.download_artifacts(run_id, file.path, str(checkpoint.parent)))
        with suppress(UserError):  # its node died while it sent it
            found[load_checkpoint(path)["epoch"]] = path
    if found:
        found[max(found)].replace(checkpoint)


def drop_checkpoints(client: MlflowClient, run_id: str) -> None:
    """Remove what a run on a cluster left with the server to be continued from, where its artifact store can."""
    with suppress(MlflowException, NotImplementedError):
        get_artifact_repository(client.get_run(run_id).info.artifact_uri).delete_artifacts(UNFINISHED)


@contextmanager
def continued_run(client: MlflowClient, run: Run, config: Config, dataset: Dataset) -> Iterator[str]:
    """A run that starts or goes on; ends FINISHED, or KILLED by a signal, or FAILED with the reason in tag `error`."""
    run_id = run.info.run_id
    try:
        client.update_run(run_id, "RUNNING")
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        _describe(client, run_id, {**config.flat(), "seed": run.data.tags["seed"]}, config, dataset)
        yield run_id
    except BaseException as error:
        with suppress(MlflowException, OSError), impatient():  # what stopped the run may stop this too
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
            if not stopped:
                client.set_tag(run_id, "error", explain(error) or f"{type(error).__name__}: {error}")
            if not (stopped or explain(error)):
                client.log_text(run_id, traceback.format_exc(), ERROR)
                error.add_note(ERROR)
        raise
    os.sync()  # after a power cut, what is marked as finished has its artifacts
    client.set_terminated(run_id, "FINISHED")


def _inputs(dataset: Dataset) -> list[DatasetInput]:
    return [
        DatasetInput(
            DatasetEntity(
                name=f"{dataset.name}-{split}",
                digest=dataset.digest[:32],
                source_type="images",
                source=json.dumps({"title": dataset.title}),
                profile=json.dumps({"images": len(dataset.labels[split]), "classes": len(dataset.classes)}),
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for split, context in (("train", "training"), ("test", "test"))
    ]


class EpochUploads:
    """Logs completed epochs from a thread of its own, so that training never waits for the tracking server.

    Metrics of an epoch go in one call, so that they are there all or not at all, and epochs that the run has already
    are left out; then the heatmap of its validation images; then `checkpoint`, if given, to continue elsewhere from.
    Leaving the context waits for the rest, and raises MlflowException if the server stays away for longer than MLflow's
    own retries last.
    """

    def __init__(self, client: MlflowClient, run_id: str, dataset: Dataset, checkpoint: Path | None = None) -> None:
        self.client, self.run_id, self.dataset, self.checkpoint = client, run_id, dataset, checkpoint
        self.epochs: Sequence[Epoch] = ()

    def __enter__(self) -> "EpochUploads":
        self.logged = {point.step for point in self.client.get_metric_history(self.run_id, "train/acc")}
        self._find_drawn()
        self.thread = ThreadPoolExecutor(1)
        return self

    def _find_drawn(self) -> None:
        files = [file.path for file in self.client.list_artifacts(self.run_id, "images")]
        self.drawn = {_step(path) for path in files if path.endswith(".webp")}  # written after the same as .png
        with suppress(MlflowException, OSError, NotImplementedError):  # not every artifact store deletes
            for path in files:
                if _step(path) not in self.drawn:
                    get_artifact_repository(self.client.get_run(self.run_id).info.artifact_uri).delete_artifacts(path)

    def report(self, epochs: Sequence[Epoch]) -> None:
        """Log in the background what of `epochs` is not logged yet."""
        self.epochs = tuple(epochs)
        self.thread.submit(self._log, self.epochs)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)
        with suppress(*(() if kind is None else (MlflowException, OSError))):  # not in place of what ended the run
            self._log(self.epochs)  # what failed in the background is tried once more

    def _log(self, epochs: Sequence[Epoch]) -> None:
        for epoch in epochs:
            if epoch.number not in self.logged:
                metrics = [Metric(name, value, epoch.ended, epoch.number) for name, value in epoch.metrics.items()]
                self.client.log_batch(self.run_id, metrics=metrics)
                self.logged.add(epoch.number)
            if epoch.confusion is not None and epoch.number not in self.drawn:
                plot = confusion_plot(self.dataset.classes, self.dataset.superclasses)
                title = f"validation, epoch {epoch.number}"
                pixels = plot.pixels(epoch.confusion.numpy(), title)
                try:
                    self.client.log_image(self.run_id, pixels, key="val_confusion", step=epoch.number)
                except (MlflowException, OSError):
                    self._find_drawn()  # one of its two files may be there
                    raise
                self.drawn.add(epoch.number)
        if self.checkpoint and epochs is self.epochs:  # of those that wait here, the last one will do
            self._keep(self.checkpoint, len(epochs))

    def _keep(self, checkpoint: Path, epochs: int) -> None:
        copy = checkpoint.with_name(f"{epochs % 2}.ckpt")  # two in turn: one is whole if this node dies meanwhile
        copy.unlink(missing_ok=True)
        copy.hardlink_to(checkpoint)
        self.client.log_artifact(self.run_id, str(copy), UNFINISHED)


def mark(client: MlflowClient, run_id: str, status: str) -> None:
    """Give a run its status: RUNNING, or with the present as its end FINISHED, FAILED or KILLED."""
    (client.update_run if status == "RUNNING" else client.set_terminated)(run_id, status)


def _step(path: str) -> int:
    """The epoch in the name that MLflow gives to an image file."""
    return int(re.search(r"\+step\+(\d+)\+", path).group(1))
