"""Results in MLflow: scores, tables and figures of each run, statistics over seeds on the parent."""

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
from cifar_lab.analysis.tables import markdown_table
from cifar_lab.data.cache import Dataset
from cifar_lab.tracking import queries
from cifar_lab.tracking.artifacts import load_arrays, load_text, log_arrays, log_texts
from cifar_lab.training.train import Result

BATCH = 1000  # most points in one call to MLflow
PAIRS = "pairs/test.csv"
PREDICTIONS = "predictions/{}.npz"
DESCRIPTION = "mlflow.note.content"  # tag; markdown
SHOWN = 100  # most seeds in the description of a parent run: MLflow cuts it at 8,000 characters
CONFUSED = 20  # most pairs of classes in a table


def log_result(client: MlflowClient, run_id: str, result: Result, dataset: Dataset, checkpoint: Path) -> None:
    """Log test metrics, predictions, confusion counts, heatmaps, class scores, curves, checkpoint, weights digest."""
    classes = dataset.classes
    name, last = client.get_run(run_id).info.run_name, result.epochs[-1]
    # with the last epoch's time, so that logging again after an interruption gives the same points
    metrics = [Metric(metric, value, last.ended, last.number) for metric, value in result.test.items()]
    client.log_batch(run_id, metrics=metrics)
    test_counts = result.model.confusion["test"].cpu().numpy()
    val_counts = [epoch.confusion.numpy() for epoch in result.epochs if epoch.confusion is not None]
    texts = {}
    for stage, counts in [*(("val", counts) for counts in val_counts[-1:]), ("test", test_counts)]:
        table = [["true \\ predicted", *classes], *([label, *row] for label, row in zip(classes, counts, strict=True))]
        texts[f"confusion/{stage}.csv"] = _csv(table)
        texts[f"confusion/{stage}_pairs.csv"] = _csv(_confused_table(counts, classes))
        texts[f"per_class/{stage}.csv"] = _csv(class_scores(counts, classes))
        heatmap = confusion_plot(classes, dataset.superclasses).pixels(counts, f"{name}, {stage}")
        client.log_image(run_id, heatmap, f"confusion/{stage}.png")
    log_texts(client, run_id, texts)
    for stage, (probabilities, labels) in result.predictions.items():
        arrays = {"probabilities": probabilities.numpy(), "labels": labels.numpy().astype(np.int32)}
        log_arrays(client, run_id, PREDICTIONS.format(stage), **arrays)
    pictures = ["confusion/test.png"]
    if val_counts:
        pictures.insert(0, "confusion/val_epochs.png")
        client.log_figure(run_id, plot_epochs(val_counts, len(classes)), pictures[0])
    client.set_tag(run_id, DESCRIPTION, "\n\n".join(_shown(run_id, picture) for picture in pictures))
    if result.model.coupling:
        accuracies = _pair_accuracies(result.model.pair_errors["test"].cpu().numpy(), test_counts)
        log_pairs(client, run_id, accuracies, classes, name)
    curves = {
        stage: {m: np.array([epoch.metrics[f"{stage}/{m}"] for epoch in result.epochs]) for m in metrics}
        for stage, metrics in queries.CURVES.items()
        if f"{stage}/acc" in last.metrics
    }
    client.log_figure(run_id, plot_learning_curves(curves, name), "learning_curves.png")
    client.log_artifact(run_id, str(checkpoint), "checkpoints")
    client.set_tag(run_id, "weights_digest", result.weights_digest)


def _shown(run_id: str, picture: str) -> str:
    """Markdown that shows an artifact in MLflow's overview of its run."""
    return f"![{picture}](get-artifact?{urlencode({'path': picture, 'run_uuid': run_id})})"


def log_pairs(client: MlflowClient, run_id: str, accuracies: np.ndarray, classes: Sequence[str], name: str) -> None:
    """Log the test accuracy of each pair's classifier on the images of its two classes, as a table and a heatmap.

    accuracies: (pairs,), ordered as by itertools.combinations.
    """
    rows = [(*pair, f"{accuracy:.4f}") for pair, accuracy in zip(combinations(classes, 2), accuracies, strict=True)]
    log_texts(client, run_id, {PAIRS: _csv([("first", "second", "accuracy"), *rows])})
    client.log_figure(run_id, plot_pairs(accuracies, classes, name), PAIRS.replace(".csv", ".png"))


def log_report(client: MlflowClient, parent_id: str, page: str) -> None:
    """Log a report on its parent run."""
    client.log_text(parent_id, page, "report.html")


def log_verdict(client: MlflowClient, run: Run, verdict: str) -> None:
    """Put the verdict of a reproduction before its description."""
    client.set_tag(run.info.run_id, DESCRIPTION, f"{verdict}\n\n{run.data.tags.get(DESCRIPTION, '')}")


def load_pairs(client: MlflowClient, run: Run) -> np.ndarray:
    """The accuracies that log_pairs logged, (pairs,)."""
    return np.array([float(row["accuracy"]) for row in csv.DictReader(io.StringIO(load_text(client, run, PAIRS)))])


def load_confusion(client: MlflowClient, run: Run) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in the order of the network's outputs, and test confusion counts (classes, classes)."""
    (_, *classes), *rows = csv.reader(io.StringIO(load_text(client, run, "confusion/test.csv")))
    return tuple(classes), np.array([[int(count) for count in counts] for _, *counts in rows])


def load_predictions(client: MlflowClient, run: Run, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, (n, classes) float16, and labels, (n,) int32, of the images of `stage`, "val" or "test"."""
    arrays = load_arrays(client, run, PREDICTIONS.format(stage))
    return arrays["probabilities"], arrays["labels"]


def _pair_accuracies(errors: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(errors), 1)
    images = confusion.sum(axis=1)
    return 1 - (errors[first, second] + errors[second, first]) / np.maximum(images[first] + images[second], 1)


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Indices (true, predicted) of the `most` most frequent errors in (classes, classes) counts."""
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[: min(most, np.count_nonzero(errors))]
    return [(int(true), int(predicted)) for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)]


def _confused_table(counts: np.ndarray, classes: Sequence[str]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [("true", "predicted", "images", "share of the true class")]
    for true, predicted in most_confused(counts, CONFUSED):
        count = int(counts[true, predicted])
        rows.append((classes[true], classes[predicted], count, f"{count / counts[true].sum():.4f}"))
    return rows


def class_scores(counts: np.ndarray, classes: Sequence[str]) -> list[Sequence[object]]:
    """Table rows, header first: precision, recall and F1 of each class, from (classes, classes) counts."""
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
    ended: int,
) -> None:
    """Log statistics over seeds on the parent run. Logging the same runs again gives the same points.

    metrics: by name ("test/acc") the values by seed; curves: by stage "loss" and so on, (seeds, epochs); ended: when
    the last run ended, in ms since 1970.
    """
    summaries = {name: summarise(list(values.values())) for name, values in metrics.items()}
    points = [
        Metric(f"{stage}/{metric}_mean", float(mean), ended, epoch)
        for stage in curves
        for metric, values in curves[stage].items()
        for epoch, mean in enumerate(values.mean(axis=0), 1)
    ]
    epochs = curves["train"]["acc"].shape[1]
    values = {"n": float(len(next(iter(metrics.values()))))}
    for name, summary in summaries.items():
        fields = {"mean": summary.mean, "std": summary.std, "ci_low": summary.ci_low, "ci_high": summary.ci_high}
        if name.startswith("val"):
            del fields["mean"]  # the last point of the curve
        values |= {f"{name}_{field}": value for field, value in fields.items()}
    run = client.get_run(parent_id)  # nan, the spread of one seed, is logged only to replace an earlier value
    shown = {name: value for name, value in values.items() if name in run.data.metrics or not np.isnan(value)}
    points += [Metric(name, value, ended, epochs) for name, value in shown.items()]
    for piece in range(0, len(points), BATCH):
        client.log_batch(parent_id, metrics=points[piece : piece + BATCH])
    figure = plot_learning_curves(curves, f"{run.info.run_name}, {int(values['n'])} seeds")
    client.log_figure(parent_id, figure, "learning_curves.png")
    client.set_tag(parent_id, DESCRIPTION, results_table(metrics, summaries))


def results_table(metrics: Mapping[str, Mapping[int, float]], summaries: Mapping[str, Summary]) -> str:
    """Markdown: mean, sample standard deviation and 95 % interval, then a row per seed, at most SHOWN."""
    rows = [
        ["**mean**", *(f"{summary.mean:.4f}" for summary in summaries.values())],
        ["**std**", *(f"{summary.std:.4f}" for summary in summaries.values())],
        ["**95 % interval**", *(f"{summary.ci_low:.4f} to {summary.ci_high:.4f}" for summary in summaries.values())],
    ]
    seeds = sorted(next(iter(metrics.values())))
    rows += [[str(seed), *(f"{values[seed]:.4f}" for values in metrics.values())] for seed in seeds[:SHOWN]]
    table = markdown_table(["seed", *metrics], rows, aligned=False)
    return f"{table}\n\nand {len(seeds) - SHOWN} more seeds" if len(seeds) > SHOWN else table
