"""One page about finished repeats: results, curves, errors, calibration, examples, and how to get them again."""

import argparse
import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image

from cifar_lab.analysis import tables
from cifar_lab.analysis.calibration import Reliability, reliability
from cifar_lab.analysis.comparison import Sample, Summary, summarise
from cifar_lab.analysis.figures import plot_bands, plot_reliability, plot_seeds
from cifar_lab.analysis.heatmaps import confusion_plot
from cifar_lab.config import experiment_name
from cifar_lab.data.cache import Dataset
from cifar_lab.execution.progress import clock
from cifar_lab.files import atomic_write
from cifar_lab.tracking import queries, store, summaries
from cifar_lab.tracking.load import config_of, dataset_of, network_of
from cifar_lab.tracking.lookup import Sets, curves_of, load_sets, remarks, values_of

TEMPLATE = "report.html"
BATCH = 250
CONFUSED = 6  # pairs of classes with examples
EXAMPLES = 6  # of each
MISTAKES = 18
HEADER = ("experiment", "n", "test accuracy", "95 % interval", "validation accuracy", "ECE of one run", "time per run")
VERSIONS = ("device", "accelerator", "python", "torch", "pytorch_lightning", "mlflow")
ORIGINS = ("mlflow.source.git.commit", "git_dirty", "code_digest", "lock_digest", "data_digest", "split_digest")


@dataclass(frozen=True)
class Picture:
    """An image of the page, in it as a data URI, and what it shows in words."""

    source: str
    alt: str


def run(options: argparse.Namespace) -> int:
    """Write the page about some sets of repeats, and track it with each of their parents."""
    client, output = store.connect(), options.output
    sets = load_sets(client, [*map(experiment_name, options.experiments)], "test/acc")
    page = render(client, sets)
    with atomic_write(output) as path:
        path.write_text(page)
    for parent in sets.parents:
        summaries.log_report(client, parent.info.run_id, page)
    print(f"written to {output} ({len(page) / 1e6:.1f} MB), and tracked with {', '.join(s.name for s in sets.samples)}")
    return 0


def render(client: MlflowClient, sets: Sets) -> str:
    """The page as HTML that needs no other file."""
    shown = {sample.name: _shown(children) for sample, children in zip(sets.samples, sets.finished, strict=True)}
    best = _shown([run for children in sets.finished for run in children])
    dataset = dataset_of(client, best)
    probabilities = {name: _probabilities(client, run, dataset) for name, run in shown.items()}
    calibration = {name: reliability(p, dataset.labels["test"]) for name, p in probabilities.items()}
    name = next(name for name, run in shown.items() if run.info.run_id == best.info.run_id)
    _, counts = summaries.load_confusion(client, best)
    curve, curves = curves_of(client, sets)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        title=dataset.title,
        today=date.today().isoformat(),
        images={split: len(labels) for split, labels in dataset.labels.items()},
        best=best,
        chosen="val/acc" in best.data.metrics,
        others=sum(map(len, sets.finished)) - 1,
        header=HEADER,
        rows=[
            _row(client, *each, calibration[each[0].name])
            for each in zip(sets.samples, sets.summaries, sets.finished, strict=True)
        ],
        difference_header=tables.DIFFERENCE_HEADER,
        differences=[[cell.replace("`", "") for cell in tables.difference_row(d)] for d in sets.differences],
        method=tables.method(sets.differences) if sets.differences else "",
        remarks=remarks(sets),
        seeds=_seeds_picture(sets),
        curves=_curves_picture(curve, curves),
        heatmap=_heatmap(best, counts, dataset),
        confused=_confused(counts, dataset, probabilities[name]),
        scores=summaries.class_scores(counts, dataset.classes),
        reliability=_reliability_picture(calibration),
        shown=shown,
        mistakes=_mistakes(dataset, probabilities[name]),
        versions={tag: best.data.tags.get(tag, "") for tag in (*VERSIONS, *ORIGINS)},
        configs={
            sample.name: config_of(client, parent).toml()
            for sample, parent in zip(sets.samples, sets.parents, strict=True)
        },
        commands=_commands(sets, best, dataset.variables),
    )


def _shown(finished: Sequence[Run]) -> Run:
    """The best of some runs by validation, or where nothing is held out the first."""
    if "val/acc" not in finished[0].data.metrics:
        return finished[0]
    return min(finished, key=queries.rank)


def _probabilities(client: MlflowClient, run: Run, dataset: Dataset) -> np.ndarray:
    """(n, classes) of the test images, from the run's last checkpoint."""
    network = network_of(client, run)
    with torch.inference_mode():
        parts = torch.from_numpy(dataset.images["test"]).split(BATCH)
        return torch.cat([network(part) for part in parts]).numpy()


def _row(
    client: MlflowClient, sample: Sample, summary: Summary, finished: Sequence[Run], found: Reliability
) -> list[str]:
    interval = f"{summary.ci_low:.2%} to {summary.ci_high:.2%}" if summary.n > 1 else "-"
    validation = [run.data.metrics["val/acc"] for run in finished if "val/acc" in run.data.metrics]
    seconds = np.mean([queries.history(client, run.info.run_id, "epoch_seconds").sum() for run in finished])
    return [
        sample.name,
        str(summary.n),
        str(summary),
        interval,
        str(summarise(validation)) if validation else "-",
        f"{found.ece:.1%}",
        clock(seconds),
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


def _seeds_picture(sets: Sets) -> Picture:
    told = "; ".join(
        f"{sample.name} {summary}, n = {summary.n}"
        for sample, summary in zip(sets.samples, sets.summaries, strict=True)
    )
    return _picture(plot_seeds(values_of(sets), sets.summaries, "test/acc"), f"Test accuracy, a dot per seed: {told}")


def _curves_picture(curve: str, curves: Mapping[str, np.ndarray]) -> Picture:
    told = "; ".join(f"{name} from {v[:, 0].mean():.1%} to {v[:, -1].mean():.1%}" for name, v in curves.items())
    return _picture(plot_bands(curves, curve), f"{curve} over epochs, mean over seeds: {told}")


def _reliability_picture(calibration: Mapping[str, Reliability]) -> Picture:
    told = "; ".join(f"{name} {found.ece:.1%}" for name, found in calibration.items())
    return _picture(
        plot_reliability(calibration), f"Share of right predictions over confidence; calibration error: {told}"
    )


def _heatmap(run: Run, counts: np.ndarray, dataset: Dataset) -> Picture:
    pixels = confusion_plot(dataset.classes, dataset.superclasses).pixels(counts, f"{run.info.run_name}, test")
    accuracy = run.data.metrics["test/acc"]
    alt = f"Confusion heatmap of {run.info.run_name} on the test images, {accuracy:.2%} on the diagonal"
    return Picture(_pixels(pixels), alt)


def _confused(counts: np.ndarray, dataset: Dataset, probabilities: np.ndarray) -> list[dict[str, object]]:
    """The most frequent errors, each with the images in which it is made with the most confidence."""
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
    """The test images that are wrong with the most confidence."""
    labels, predicted = dataset.labels["test"], probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    found = []
    for i in wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISTAKES]:
        true, taken = dataset.classes[labels[i]], dataset.classes[predicted[i]]
        picture = Picture(_pixels(dataset.images["test"][i]), f"{true} taken for {taken}")
        found.append({"true": true, "wrong": taken, "confidence": f"{probabilities[i].max():.0%}", "picture": picture})
    return found


def _commands(sets: Sets, best: Run, variables: str) -> list[str]:
    commit = best.data.tags.get("mlflow.source.git.commit", "unknown")
    seeds = sorted(set.union(*(set(sample.values) for sample in sets.samples)))
    count = str(len(seeds)) if seeds == [*range(len(seeds))] else ",".join(map(str, seeds))
    names = " ".join(dict.fromkeys(parent.data.tags["experiment"] for parent in sets.parents))
    return [
        *([f"git checkout {commit}"] if re.fullmatch("[0-9a-f]{40}", commit) else []),
        f'make experiment EXPERIMENTS="{names}" SEEDS={count}{variables}',
        f"make reproduce RUN={best.info.run_id}",
    ]
