"""What finished runs leave: scores, tables and pictures on each run, statistics over seeds on the parent."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient
from sklearn.metrics import precision_recall_fscore_support

from cifar_lab.analysis.comparison import Summary, summarise
from cifar_lab.analysis.figures import plot_learning_curves
from cifar_lab.analysis.heatmaps import confusion_plot, plot_epochs, plot_pairs
from cifar_lab.data.cache import Dataset
from cifar_lab.tracking.artifacts import load_text, log_texts
from cifar_lab.training.train import Result

BATCH = 1000  # points that MLflow takes in one call
PAIRS = "pairs/test.csv"
DESCRIPTION = "mlflow.note.content"  # tag; Markdown
SHOWN = 100  # seeds in the description of a parent run, which MLflow cuts at 8,000 characters
CONFUSED = 20  # pairs of classes in a table


def log_result(client: MlflowClient, run_id: str, result: Result, dataset: Dataset, checkpoint: Path) -> None:
    """Test metrics, confusion counts and heatmaps, per-class scores, learning curves, checkpoint, weights digest."""
    classes = dataset.classes
    name, last = client.get_run(run_id).info.run_name, result.epochs[-1]
    # the last epoch's time: logged again after an interruption, they are the same points
    metrics = [Metric(metric, value, last.ended, last.number) for metric, value in result.test.items()]
    client.log_batch(run_id, metrics=metrics)
    confusions = {"val": last.confusion, "test": result.model.confusion["test"]}
    texts = {}
    for stage in ["val", "test"] if last.confusion is not None else ["test"]:
        counts = confusions[stage].cpu().numpy()
        table = [["true \\ predicted", *classes], *([label, *row] for label, row in zip(classes, counts, strict=True))]
        texts[f"confusion/{stage}.csv"] = _csv(table)
        texts[f"confusion/{stage}_pairs.csv"] = _csv(_most_confused(counts, classes))
        texts[f"per_class/{stage}.csv"] = _csv(class_scores(counts, classes))
        heatmap = confusion_plot(classes, dataset.superclasses).pixels(counts, f"{name}, {stage}")
        client.log_image(run_id, heatmap, f"confusion/{stage}.png")
    log_texts(client, run_id, texts)
    pictures = ["confusion/test.png"]
    if last.confusion is not None:
        strip = plot_epochs([epoch.confusion.cpu().numpy() for epoch in result.epochs], len(classes))
        pictures.insert(0, "confusion/val_epochs.png")
        client.log_figure(run_id, strip, pictures[0])
    client.set_tag(run_id, DESCRIPTION, "\n\n".join(_shown(run_id, picture) for picture in pictures))
    if result.model.coupling:
        accuracies = _pair_accuracies(result.model.pair_errors["test"].cpu().numpy(), confusions["test"].cpu().numpy())
        log_pairs(client, run_id, accuracies, classes, name)
    curves = {
        stage: {m: np.array([epoch.metrics[f"{stage}/{m}"] for epoch in result.epochs]) for m in ("loss", "acc")}
        for stage in ("train", "val")
        if f"{stage}/acc" in last.metrics
    }
    losses = train_loss(result.model.optim.label_smoothing, result.model.coupling is not None)
    client.log_figure(run_id, plot_learning_curves(curves, name, losses), "learning_curves.png")
    client.log_artifact(run_id, str(checkpoint), "checkpoints")
    client.set_tag(run_id, "weights_digest", result.weights_digest)


def _shown(run_id: str, picture: str) -> str:
    """Markdown with which MLflow's overview of a run shows one of its artifacts."""
    return f"![{picture}](get-artifact?{urlencode({'path': picture, 'run_uuid': run_id})})"


def log_pairs(client: MlflowClient, run_id: str, accuracies: np.ndarray, classes: Sequence[str], name: str) -> None:
    """Test accuracy of each pair's classifier on the images of its two classes, as a table and a heatmap.

    accuracies: (pairs,), pairs as in itertools.combinations.
    """
    rows = [(*pair, f"{accuracy:.4f}") for pair, accuracy in zip(combinations(classes, 2), accuracies, strict=True)]
    log_texts(client, run_id, {PAIRS: _csv([("first", "second", "accuracy"), *rows])})
    client.log_figure(run_id, plot_pairs(accuracies, classes, name), PAIRS.replace(".csv", ".png"))


def log_report(client: MlflowClient, parent_id: str, page: str) -> None:
    """The page about repeats, with their parent."""
    client.log_text(parent_id, page, "report.html")


def train_loss(label_smoothing: float, one_vs_one: bool) -> dict[str, str]:
    """What the training loss is, if not the cross-entropy that the other stages have: see plot_learning_curves."""
    names = [f"label smoothing {label_smoothing:g}"] * (label_smoothing > 0) + ["sum over pairs"] * one_vs_one
    return {"train": ", ".join(names)} if names else {}


def log_verdict(client: MlflowClient, run: Run, verdict: str) -> None:
    """What a reproduction found, before the rest of its description."""
    client.set_tag(run.info.run_id, DESCRIPTION, f"{verdict}\n\n{run.data.tags.get(DESCRIPTION, '')}")


def load_pairs(client: MlflowClient, run: Run) -> np.ndarray:
    """What log_pairs logged of a run."""
    return np.array([float(row["accuracy"]) for row in csv.DictReader(io.StringIO(load_text(client, run, PAIRS)))])


def load_confusion(client: MlflowClient, run: Run) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, in the order of the network's outputs, and test confusion counts (classes, classes) of a run."""
    (_, *classes), *rows = csv.reader(io.StringIO(load_text(client, run, "confusion/test.csv")))
    return tuple(classes), np.array([[int(count) for count in counts] for _, *counts in rows])


def _pair_accuracies(errors: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(errors), 1)
    images = confusion.sum(axis=1)
    return 1 - (errors[first, second] + errors[second, first]) / np.maximum(images[first] + images[second], 1)


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Of (classes, classes) counts the indices (true, predicted) of the most frequent errors, at most so many."""
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[: min(most, np.count_nonzero(errors))]
    return [(int(true), int(predicted)) for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)]


def _most_confused(counts: np.ndarray, classes: Sequence[str]) -> list[Sequence[object]]:
    rows = [("true", "predicted", "images", "share of the true class")]
    for true, predicted in most_confused(counts, CONFUSED):
        count = int(counts[true, predicted])
        rows.append((classes[true], classes[predicted], count, f"{count / counts[true].sum():.4f}"))
    return rows


def class_scores(counts: np.ndarray, classes: Sequence[str]) -> list[Sequence[object]]:
    """Rows of a table with precision, recall and F1 of each class, from (classes, classes) counts; first the header."""
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    scores = precision_recall_fscore_support(true, predicted, sample_weight=counts.ravel(), zero_division=0)
    rows = zip(classes, *scores, strict=True)
    header = ("class", "precision", "recall", "f1", "images")
    return [header, *((name, f"{p:.4f}", f"{r:.4f}", f"{f1:.4f}", int(n)) for name, p, r, f1, n in rows)]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def log_repeats(
    client: MlflowClient,
    parent_id: str,
    metrics: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    losses: Mapping[str, str],
    ended: int,
) -> None:
    """Statistics over seeds on the parent run; of the same runs always the same points, however often it is called.

    metrics: of each name ("test/acc") its value by seed; curves: of each stage its "loss" and "acc", (seeds, epochs);
    losses: see plot_learning_curves; ended: when the last of the runs ended, ms since 1970.
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
        values |= {f"{name}_{field}": value for field, value in fields.items()}
    run = client.get_run(parent_id)  # of one seed there is no spread: nan only where an earlier one has to go
    shown = {name: value for name, value in values.items() if name in run.data.metrics or not np.isnan(value)}
    points += [Metric(name, value, ended, epochs) for name, value in shown.items()]
    for piece in range(0, len(points), BATCH):
        client.log_batch(parent_id, metrics=points[piece : piece + BATCH])
    figure = plot_learning_curves(curves, f"{run.info.run_name}, {int(values['n'])} seeds", losses)
    client.log_figure(parent_id, figure, "learning_curves.png")
    client.set_tag(parent_id, DESCRIPTION, results_table(metrics, summaries))


def results_table(metrics: Mapping[str, Mapping[int, float]], summaries: Mapping[str, Summary]) -> str:
    """Markdown: mean, sample standard deviation and 95 % interval, then a row per seed, of many the first."""
    names = list(metrics)
    rows = ["| seed | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for label, text in (
        ("mean", lambda s: f"{s.mean:.4f}"),
        ("std", lambda s: f"{s.std:.4f}"),
        ("95 % interval", lambda s: f"{s.ci_low:.4f} to {s.ci_high:.4f}"),
    ):
        rows.append(f"| **{label}** | " + " | ".join(text(summaries[name]) for name in names) + " |")
    seeds = sorted(metrics[names[0]])
    for seed in seeds[:SHOWN]:
        rows.append(f"| {seed} | " + " | ".join(f"{metrics[name][seed]:.4f}" for name in names) + " |")
    return "\n".join([*rows, *([f"\nand {len(seeds) - SHOWN} seeds more"] if len(seeds) > SHOWN else [])])
