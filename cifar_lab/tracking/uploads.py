"""What is uploaded while a run trains: epochs, heatmaps, checkpoints to continue from."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.heatmaps import confusion_plot
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UserError
from cifar_lab.files import is_whole
from cifar_lab.tracking.places import checkpoint_of
from cifar_lab.training.checkpoints import load_checkpoint
from cifar_lab.training.train import Epoch

UNFINISHED = "unfinished"  # artifacts of a run on a cluster: its last two checkpoints


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


def _step(path: str) -> int:
    """The epoch in the name that MLflow gives to an image file."""
    return int(re.search(r"\+step\+(\d+)\+", path).group(1))
