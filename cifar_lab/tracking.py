"""What is written of parent and child runs: parameters, metrics, tags, artifacts, and how they end."""

import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from sklearn.metrics import precision_recall_fscore_support

from cifar_lab import runs
from cifar_lab.comparison import Summary, summarise
from cifar_lab.config import Config
from cifar_lab.datasets import Dataset
from cifar_lab.figures import confusion_plot, plot_learning_curves
from cifar_lab.store import checkpoint_of, explain, impatient
from cifar_lab.train import Epoch, Result

ERROR = "error.txt"  # artifact with the traceback of a failed run
BATCH = 1000  # points that MLflow takes in one call


def open_parent(
    client: MlflowClient, experiment_id: str, name: str, config: Config, dataset: Dataset, tags: Mapping[str, str]
) -> Run:
    """The run that holds the statistics over the seeds of a config; a new one if the config never ran."""
    run = runs.find_parent(client, experiment_id, tags["config_hash"])
    if run is None:
        run = client.create_run(experiment_id, run_name=name, tags={**tags, "kind": "repeats"})
    _describe(client, run.info.run_id, config.flat(), config, dataset)
    return client.get_run(run.info.run_id)


def _describe(
    client: MlflowClient, run_id: str, parameters: Mapping[str, object], config: Config, dataset: Dataset
) -> None:
    """Log what goes into a run. To be done for the parent first: MLflow fails if two runs name new images at once."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
    client.log_text(run_id, config.toml(), "config.toml")
    client.log_inputs(run_id, _inputs(dataset))


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """A new run, to be trained in continued_run."""
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    checkpoint_of(run.info.run_id).parent.mkdir(parents=True)
    return run


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
    are left out; then the heatmap of its validation images. Leaving the context waits for the rest, and raises
    MlflowException if the server stays away for longer than MLflow's own retries last.
    """

    def __init__(self, client: MlflowClient, run_id: str, classes: tuple[str, ...]) -> None:
        self.client, self.run_id, self.classes = client, run_id, classes
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
                plot, title = confusion_plot(self.classes), f"validation, epoch {epoch.number}"
                pixels = plot.pixels(epoch.confusion.numpy(), title)
                try:
                    self.client.log_image(self.run_id, pixels, key="val_confusion", step=epoch.number)
                except (MlflowException, OSError):
                    self._find_drawn()  # one of its two files may be there
                    raise
                self.drawn.add(epoch.number)


def mark(client: MlflowClient, run_id: str, status: str) -> None:
    """Give a run its status: RUNNING, or with the present as its end FINISHED, FAILED or KILLED."""
    (client.update_run if status == "RUNNING" else client.set_terminated)(run_id, status)


def _step(path: str) -> int:
    """The epoch in the name that MLflow gives to an image file."""
    return int(re.search(r"\+step\+(\d+)\+", path).group(1))


def log_result(client: MlflowClient, run_id: str, result: Result, classes: tuple[str, ...], checkpoint: Path) -> None:
    """Test metrics, confusion counts and heatmaps, per-class scores, learning curves, checkpoint, weights digest."""
    name, last = client.get_run(run_id).info.run_name, result.epochs[-1]
    # the last epoch's time: logged again after an interruption, they are the same points
    metrics = [Metric(metric, value, last.ended, last.number) for metric, value in result.test.items()]
    client.log_batch(run_id, metrics=metrics)
    confusions = {"val": last.confusion, "test": result.model.confusion["test"]}
    for stage in ["val", "test"] if last.confusion is not None else ["test"]:
        counts = confusions[stage].cpu().numpy()
        table = [["true \\ predicted", *classes], *([label, *row] for label, row in zip(classes, counts, strict=True))]
        client.log_text(run_id, _csv(table), f"confusion/{stage}.csv")
        client.log_image(run_id, confusion_plot(classes).pixels(counts, f"{name}, {stage}"), f"confusion/{stage}.png")
        client.log_text(run_id, _csv(_class_scores(counts, classes)), f"per_class/{stage}.csv")
    curves = {
        stage: {m: np.array([epoch.metrics[f"{stage}/{m}"] for epoch in result.epochs]) for m in ("loss", "acc")}
        for stage in ("train", "val")
        if f"{stage}/acc" in last.metrics
    }
    client.log_figure(run_id, plot_learning_curves(curves, name), "learning_curves.png")
    client.log_artifact(run_id, str(checkpoint), "checkpoints")
    client.set_tag(run_id, "weights_digest", result.weights_digest)


def log_verdict(client: MlflowClient, run_id: str, verdict: str) -> None:
    """What a reproduction found, as its description."""
    client.set_tag(run_id, "mlflow.note.content", verdict)


def _class_scores(counts: np.ndarray, classes: Sequence[str]) -> list[Sequence[object]]:
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    scores = precision_recall_fscore_support(true, predicted, sample_weight=counts.ravel(), zero_division=0)
    rows = zip(classes, *scores, strict=True)
    header = ("class", "precision", "recall", "f1", "images")
    return [header, *((name, f"{p:.4f}", f"{r:.4f}", f"{f1:.4f}", int(n)) for name, p, r, f1, n in rows)]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def log_repeats(
    client: MlflowClient,
    parent_id: str,
    metrics: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    ended: int,
) -> None:
    """Statistics over seeds on the parent run; of the same runs always the same points, however often it is called.

    metrics: of each name ("test/acc") its value by seed; curves: of each stage its "loss" and "acc", (seeds, epochs);
    ended: when the last of the runs ended, ms since 1970.
    """
    summaries = {name: summarise(list(values.values())) for name, values in metrics.items()}
    points = [
        Metric(f"{stage}/{metric}_mean", float(mean), ended, epoch)
        for stage in curves
        for metric, values in curves[stage].items()
        for epoch, mean in enumerate(values.mean(axis=0), 1)
    ]
    epochs = curves["train"]["acc"].shape[1]
    values = {"n": float(len(metrics["test/acc"]))}
    for name, summary in summaries.items():
        fields = {"mean": summary.mean, "std": summary.std, "ci_low": summary.ci_low, "ci_high": summary.ci_high}
        if name.startswith("val"):
            del fields["mean"]  # the last point of the curve
        values |= {f"{name}_{field}": value for field, value in fields.items() if not np.isnan(value)}
    points += [Metric(name, value, ended, epochs) for name, value in values.items()]
    for piece in range(0, len(points), BATCH):
        client.log_batch(parent_id, metrics=points[piece : piece + BATCH])
    run = client.get_run(parent_id)
    client.log_figure(
        parent_id, plot_learning_curves(curves, f"{run.info.run_name}, {int(values['n'])} seeds"), "learning_curves.png"
    )
    client.set_tag(parent_id, "mlflow.note.content", results_table(metrics, summaries))


def results_table(metrics: Mapping[str, Mapping[int, float]], summaries: Mapping[str, Summary]) -> str:
    """Markdown: a row per seed, then mean, sample standard deviation and 95 % interval."""
    names = list(metrics)
    rows = ["| seed | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for seed in sorted(metrics[names[0]]):
        rows.append(f"| {seed} | " + " | ".join(f"{metrics[name][seed]:.4f}" for name in names) + " |")
    for label, text in (
        ("mean", lambda s: f"{s.mean:.4f}"),
        ("std", lambda s: f"{s.std:.4f}"),
        ("95 % interval", lambda s: f"{s.ci_low:.4f} to {s.ci_high:.4f}"),
    ):
        rows.append(f"| **{label}** | " + " | ".join(text(summaries[name]) for name in names) + " |")
    return "\n".join(rows)
