"""What is written of parent and child runs: parameters, metrics, tags, artifacts, and how they end."""

import json
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytorch_lightning
import torch
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.tracking import MlflowClient
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger
from sklearn.metrics import precision_recall_fscore_support

from cifar_lab.comparison import Summary, summarise
from cifar_lab.config import Config, UserError
from cifar_lab.datamodule import split_digest
from cifar_lab.datasets import Dataset
from cifar_lab.figures import plot_confusion, plot_learning_curves, to_pixels
from cifar_lab.sources import file_digest
from cifar_lab.train import Result

REPOSITORY = Path(__file__).resolve().parent.parent


def run_tags(name: str, config: Config, dataset: Dataset, accelerator: str) -> dict[str, str]:
    """Tags of every run, parents too: what was run, on which data, with which code and device. No host names."""
    lock = REPOSITORY / "requirements.lock"
    return {
        "experiment": name,
        "config_hash": config.hash(dataset.digest),
        "data_digest": dataset.digest[:32],
        "split_digest": split_digest(dataset.labels["train"], config.data),
        "lock_digest": file_digest(lock)[:16] if lock.exists() else "none",
        "git_dirty": str(bool(_git("status", "--porcelain"))).lower(),
        "mlflow.source.git.commit": _git("rev-parse", "HEAD") or "none",
        "mlflow.source.name": f"cifar_lab experiment {name}",
        "accelerator": accelerator,
        "device": torch.cuda.get_device_name() if accelerator == "cuda" else _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "mlflow": mlflow.__version__,
    }


def _git(*command: str) -> str:
    try:
        return subprocess.run(["git", "-C", REPOSITORY, *command], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""  # no git here


def _processor() -> str:
    try:
        names = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def start_parent(client: MlflowClient, experiment_id: str, name: str, config: Config, tags: Mapping[str, str]) -> Run:
    """Start the run that will hold the statistics over seeds."""
    run_id = client.create_run(experiment_id, run_name=name, tags={**tags, "kind": "repeats"}).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.flat().items()])
    client.log_text(run_id, config.toml(), "config.toml")
    return client.get_run(run_id)


@contextmanager
def child_run(
    client: MlflowClient, parent_id: str, name: str, seed: int, config: Config, dataset: Dataset, accelerator: str
) -> Iterator[str]:
    """A run under `parent_id`; ends FINISHED, or KILLED by a signal, or FAILED with the reason in the tag `error`."""
    tags = run_tags(name, config, dataset, accelerator)
    tags |= {"kind": "run", "seed": str(seed), "mlflow.parentRunId": parent_id}
    experiment_id = client.get_run(parent_id).info.experiment_id
    run_id = client.create_run(experiment_id, run_name=f"{name}-seed{seed}", tags=tags).info.run_id
    try:
        parameters = {**config.flat(), "seed": seed}
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
        client.log_text(run_id, config.toml(), "config.toml")
        client.log_inputs(run_id, _inputs(dataset))
        yield run_id
    except (KeyboardInterrupt, SystemExit):
        client.set_terminated(run_id, "KILLED")
        raise
    except BaseException as error:
        client.set_terminated(run_id, "FAILED")
        client.set_tag(run_id, "error", str(error) or type(error).__name__)
        if not isinstance(error, UserError):
            client.log_text(run_id, traceback.format_exc(), "error.txt")
        raise
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


class RunLogger(MLFlowLogger):
    """Lightning's MLflow logger; float32 metrics become their shortest decimals, the end of a run is child_run's."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: float(str(np.float32(value))) for name, value in metrics.items()}, step)

    def finalize(self, status: str = "success") -> None:
        pass


class ConfusionImages(Callback):
    """Logs the validation heatmap of every epoch, so that the UI can step through them."""

    def __init__(self, client: MlflowClient, run_id: str, classes: Sequence[str]) -> None:
        self.client, self.run_id, self.classes = client, run_id, classes

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        figure = plot_confusion(module.confusion["val"].cpu().numpy(), self.classes, f"validation, epoch {epoch}")
        self.client.log_image(self.run_id, to_pixels(figure), key="val_confusion", step=epoch)


def reopen_parent(client: MlflowClient, run_id: str) -> None:
    """Show the parent run as running again."""
    client.update_run(run_id, "RUNNING")


def end_run(client: MlflowClient, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    client.set_terminated(run_id, status)


def log_result(
    client: MlflowClient,
    run_id: str,
    result: Result,
    classes: Sequence[str],
    curves: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Confusion counts and heatmaps, per-class scores, learning curves, checkpoint and weights digest of a run."""
    name = client.get_run(run_id).info.run_name
    for stage in ("val", "test"):
        counts = result.model.confusion[stage].cpu().numpy()
        table = [["true \\ predicted", *classes], *([label, *row] for label, row in zip(classes, counts, strict=True))]
        client.log_text(run_id, _csv(table), f"confusion/{stage}.csv")
        client.log_figure(run_id, plot_confusion(counts, classes, f"{name}, {stage}"), f"confusion/{stage}.png")
        client.log_text(run_id, _csv(_class_scores(counts, classes)), f"per_class/{stage}.csv")
    client.log_figure(run_id, plot_learning_curves(curves, name), "learning_curves.png")
    client.log_artifact(run_id, str(result.checkpoint), "checkpoints")
    client.set_tag(run_id, "weights_digest", result.weights_digest)


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
) -> None:
    """Statistics over seeds on the parent run.

    metrics: of each name ("val/acc") its value by seed; curves: of each stage its "loss" and "acc", (seeds, epochs).
    """
    summaries = {name: summarise(list(values.values())) for name, values in metrics.items()}
    for stage in curves:
        for metric, values in curves[stage].items():
            for epoch, mean in enumerate(values.mean(axis=0), 1):
                client.log_metric(parent_id, f"{stage}/{metric}_mean", float(mean), step=epoch)
    epochs = curves["val"]["acc"].shape[1]
    values = {"n": float(len(metrics["val/acc"]))}
    for name, summary in summaries.items():
        fields = {"mean": summary.mean, "std": summary.std, "ci_low": summary.ci_low, "ci_high": summary.ci_high}
        if name.startswith("val"):
            del fields["mean"]  # the last point of the curve
        values |= {f"{name}_{field}": value for field, value in fields.items() if not np.isnan(value)}
    now = int(1000 * time.time())
    client.log_batch(parent_id, metrics=[Metric(name, value, now, epochs) for name, value in values.items()])
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
