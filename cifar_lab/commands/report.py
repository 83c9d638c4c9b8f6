"""One page about finished repeats: results, curves, errors, calibration, examples, commands to reproduce them."""

import argparse
import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image

from cifar_lab.analysis import tables
from cifar_lab.analysis.calibration import Reliability, reliability
from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.figures import plot_bands, plot_reliability, plot_seeds
from cifar_lab.analysis.heatmaps import confusion_plot
from cifar_lab.data.cache import Dataset
from cifar_lab.execution.progress import clock
from cifar_lab.experiment_files import experiment_name
from cifar_lab.files import atomic_write
from cifar_lab.tracking import evaluations, queries, store, summaries
from cifar_lab.tracking.artifacts import load_text, text_digest
from cifar_lab.tracking.load import dataset_of
from cifar_lab.tracking.lookup import Comparison, Item, curves_of, load_comparison
from cifar_lab.tracking.models import model_of

TEMPLATE = "report.html"
CONFUSED = 6  # pairs of classes with examples
EXAMPLES = 6  # of each
MISTAKES = 18
HEADER = (
    "experiment",
    "n",
    "test accuracy",
    "95 %, seeds",
    "95 %, seeds and images",
    "ensemble",
    "validation accuracy",
    "ECE",
    "time per run",
)
VERSIONS = ("device", "accelerator", "python", "torch", "pytorch_lightning", "mlflow")
ORIGINS = ("mlflow.source.git.commit", "git_dirty", "code_digest", "lock_digest", "data_digest", "split_digest")


@dataclass(frozen=True)
class Picture:
    """An image in the page: its data URI and alternative text."""

    source: str
    alt: str


def run(options: argparse.Namespace) -> int:
    """Write the page about some experiments, and log it on each of their parents. Raises UserError."""
    client, output = store.connect(), options.output
    comparison = load_comparison(client, [*map(experiment_name, options.experiments)], "test/acc")
    page = render(client, comparison, options.trust)
    with atomic_write(output) as path:
        path.write_text(page)
    for item in comparison.items:
        summaries.log_report(client, item.parent.info.run_id, page)
    names = ", ".join(item.name for item in comparison.items)
    print(f"written to {output} ({len(page) / 1e6:.1f} MB), and logged with {names}")
    return 0


def render(client: MlflowClient, comparison: Comparison, trust: bool) -> str:
    """The page as self-contained HTML."""
    items, differences = comparison.items, comparison.differences
    shown = {item.name: queries.best_of(item.finished) for item in items}
    best = queries.best_of([run for item in items for run in item.finished])
    dataset = dataset_of(client, best)
    probabilities = {name: model_of(client, run, trust)(dataset.images["test"]) for name, run in shown.items()}
    calibration = {name: reliability(p, dataset.labels["test"]) for name, p in probabilities.items()}
    name = next(name for name, run in shown.items() if run.info.run_id == best.info.run_id)
    _, counts = summaries.load_confusion(client, best)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        title=dataset.title,
        today=date.today().isoformat(),
        images={split: len(labels) for split, labels in dataset.labels.items()},
        best=best,
        chosen="val/acc" in best.data.metrics,
        runs=sum(len(item.finished) for item in items),
        header=HEADER,
        rows=[_row(client, item) for item in items],
        difference_header=tables.DIFFERENCE_HEADER,
        differences=[[cell.replace("`", "") for cell in tables.difference_row(d)] for d in differences],
        method=tables.method(differences) if differences else "",
        remarks=comparison.remarks,
        seeds=_seeds_picture(comparison),
        curves=_curves_picture(*curves_of(client, comparison)),
        heatmap=_heatmap(best, counts, dataset),
        confused=_confused(counts, dataset, probabilities[name]),
        scores=summaries.class_scores(counts, dataset.classes),
        reliability=_reliability_picture(calibration),
        shown=shown,
        score_header=tables.SCORE_HEADER,
        evaluated=[found for item in items for found in _evaluated(client, item)],
        mistakes=_mistakes(dataset, probabilities[name]),
        versions={tag: best.data.tags.get(tag, "") for tag in (*VERSIONS, *ORIGINS)},
        configs={item.name: load_text(client, item.parent, "config.toml") for item in items},
        commands=_commands(items, best, dataset.variables),
    )


def _row(client: MlflowClient, item: Item) -> list[str]:
    name, n, _, _, *intervals, ensemble = tables.summary_row(item.sample, item.summary)
    validation = [run.data.metrics["val/acc"] for run in item.finished if "val/acc" in run.data.metrics]
    predicted = [run for run in item.finished if text_digest(run, summaries.PREDICTIONS.format("test"))]
    eces = [reliability(*summaries.load_predictions(client, run, "test")).ece for run in predicted]
    return [
        name.strip("`"),
        n,
        str(item.summary),
        *intervals,
        ensemble,
        str(summarise(validation)) if validation else "-",
        str(summarise(eces)) if eces else "-",
        clock(queries.training_seconds(client, item.finished)),
    ]


def _picture(figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return Picture(_uri(buffer.getvalue()), alt)


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _pixels(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _seeds_picture(comparison: Comparison) -> Picture:
    texts = [f"{item.name} {item.summary}, n = {item.summary.n}" for item in comparison.items]
    alt = f"Test accuracy, a dot per seed: {'; '.join(texts)}"
    return _picture(plot_seeds(comparison.values, comparison.summaries, "test/acc"), alt)


def _curves_picture(curve: str, curves: Mapping[str, np.ndarray]) -> Picture:
    texts = [f"{name} from {v[:, 0].mean():.1%} to {v[:, -1].mean():.1%}" for name, v in curves.items()]
    return _picture(plot_bands(curves, curve), f"{curve} over epochs, mean over seeds: {'; '.join(texts)}")


def _reliability_picture(calibration: Mapping[str, Reliability]) -> Picture:
    texts = [f"{name} {found.ece:.1%}" for name, found in calibration.items()]
    alt = f"Accuracy over confidence; expected calibration error: {'; '.join(texts)}"
    return _picture(plot_reliability(calibration), alt)


def _evaluated(client: MlflowClient, item: Item) -> list[dict[str, object]]:
    """What `evaluate` tracked with these repeats."""
    found: list[dict[str, object]] = []
    for key, title in evaluations.evaluated(item.parent).items():
        rows = tables.score_rows(evaluations.load_scores(client, item.parent, key))
        alt = f"Accuracy of {item.name} by corruption and strength, mean over seeds"
        heatmap = evaluations.load_heatmap(client, item.parent, key)
        picture = Picture(_uri(heatmap), alt) if heatmap else None
        found.append({"name": item.name, "title": title, "rows": rows, "picture": picture})
    return found


def _heatmap(run: Run, counts: np.ndarray, dataset: Dataset) -> Picture:
    pixels = confusion_plot(dataset.classes, dataset.superclasses).pixels(counts, f"{run.info.run_name}, test")
    accuracy = run.data.metrics["test/acc"]
    alt = f"Confusion heatmap of {run.info.run_name} on the test images, {accuracy:.2%} on the diagonal"
    return Picture(_pixels(pixels), alt)


def _confused(counts: np.ndarray, dataset: Dataset, probabilities: np.ndarray) -> list[dict[str, object]]:
    """The most frequent errors, each with its most confident examples."""
    predicted, found = probabilities.argmax(axis=1), []
    for label, guess in summaries.most_confused(counts, CONFUSED):
        true, wrong, count = dataset.classes[label], dataset.classes[guess], int(counts[label, guess])
        which = np.flatnonzero((dataset.labels["test"] == label) & (predicted == guess))
        which = which[np.argsort(-probabilities[which, guess], kind="stable")][:EXAMPLES]
        pictures = [Picture(_pixels(dataset.images["test"][i]), f"{true} taken for {wrong}") for i in which]
        share = f"{count / counts[label].sum():.1%}"
        found.append({"true": true, "wrong": wrong, "count": count, "share": share, "pictures": pictures})
    return found


def _mistakes(dataset: Dataset, probabilities: np.ndarray) -> list[dict[str, object]]:
    """The most confidently misclassified test images."""
    labels, predicted = dataset.labels["test"], probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    found = []
    for i in wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISTAKES]:
        true, taken = dataset.classes[labels[i]], dataset.classes[predicted[i]]
        picture = Picture(_pixels(dataset.images["test"][i]), f"{true} taken for {taken}")
        found.append({"true": true, "wrong": taken, "confidence": f"{probabilities[i].max():.0%}", "picture": picture})
    return found


def _commands(items: Sequence[Item], best: Run, variables: str) -> list[str]:
    commit = best.data.tags.get("mlflow.source.git.commit", "unknown")
    seeds = sorted(set().union(*(item.sample.values for item in items)))
    count = str(len(seeds)) if seeds == [*range(len(seeds))] else ",".join(map(str, seeds))
    names = " ".join(dict.fromkeys(item.parent.data.tags["experiment"] for item in items))
    return [
        *([f"git checkout {commit}"] if re.fullmatch("[0-9a-f]{40}", commit) else []),
        f'make experiment EXPERIMENTS="{names}" SEEDS={count}{variables}',
        f"make reproduce RUN={best.info.run_id}",
    ]
