"""Uploads while a run trains: metrics, heatmaps, and checkpoints to continue from."""

import math
import time
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

UNFINISHED = "unfinished"  # artifact folder of a run on a cluster, with its last two checkpoints
FLUSH_SECONDS = 5.0


def fetch_checkpoint(client: MlflowClient, run_id: str) -> None:
    """Download the last checkpoint of a run on a cluster, unless this node already has one."""
    checkpoint = checkpoint_of(run_id)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if is_whole(checkpoint):
        return
    checkpoint.unlink(missing_ok=True)
    found = {}
    for file in client.list_artifacts(run_id, UNFINISHED):
        path = Path(client.download_artifacts(run_id, file.path, str(checkpoint.parent)))
        with suppress(UserError):  # incomplete: its node died during the upload
            found[load_checkpoint(path)["epoch"]] = path
    if found:
        found[max(found)].replace(checkpoint)


def drop_checkpoints(client: MlflowClient, run_id: str) -> None:
    """Delete the uploaded checkpoints of a finished run, if its artifact store can delete."""
    with suppress(MlflowException, NotImplementedError):
        get_artifact_repository(client.get_run(run_id).info.artifact_uri).delete_artifacts(UNFINISHED)


class EpochUploads:
    """Logs completed epochs from a thread, so that training never waits for the tracking server.

    For each epoch that the run does not have yet, it logs all metrics in one call, then the validation heatmap, then
    `checkpoint`, if given, so that another node can continue. Leaving the context waits for the rest, and raises
    MlflowException if the server is away for longer than MLflow's retries last. A run that is being stopped logs for
    a few more seconds: the next start logs what is missing.
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
        self.drawn = {_step(path) for path in files if path.endswith(".webp")}  # MLflow writes the .png first
        with suppress(MlflowException, OSError, NotImplementedError):  # not every artifact store can delete
            for path in files:
                if _step(path) not in self.drawn:
                    get_artifact_repository(self.client.get_run(self.run_id).info.artifact_uri).delete_artifacts(path)

    def report(self, epochs: Sequence[Epoch]) -> None:
        """Log, in the background, those of `epochs` that are not logged yet."""
        self.epochs = tuple(epochs)
        self.thread.submit(self._log, self.epochs)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)
        stopped = kind in (KeyboardInterrupt, SystemExit)
        with suppress(*(() if kind is None else (MlflowException, OSError))):  # don't replace the error that ended it
            # retries what failed in the background
            self._log(self.epochs, until=time.monotonic() + FLUSH_SECONDS if stopped else math.inf)

    def _log(self, epochs: Sequence[Epoch], until: float = math.inf) -> None:
        for epoch in epochs:
            if time.monotonic() > until:
                break
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
                    self._find_drawn()  # one of its two files may exist
                    raise
                self.drawn.add(epoch.number)
        if self.checkpoint and epochs is self.epochs:  # only the newest is needed
            self._keep(self.checkpoint, len(epochs))

    def _keep(self, checkpoint: Path, epochs: int) -> None:
        copy = checkpoint.with_name(f"{epochs % 2}.ckpt")  # alternating: one stays intact if this node dies
        copy.unlink(missing_ok=True)
        copy.hardlink_to(checkpoint)
        self.client.log_artifact(self.run_id, str(copy), UNFINISHED)


def _step(path: str) -> int:
    """The epoch in the file name that MLflow gives to an image."""
    return int(path.partition("+step+")[2].partition("+")[0])
