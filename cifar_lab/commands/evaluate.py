"""Test trained runs on other images: corrupted ones, published test sets, images of another kind."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.calibration import fit_temperature, foreign_auroc, scores
from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.heatmaps import plot_corruptions
from cifar_lab.analysis.tables import markdown_table
from cifar_lab.data.cache import Dataset, load_dataset
from cifar_lab.data.others import Others, find_others
from cifar_lab.data.search import NAMES
from cifar_lab.data.selection import split_train
from cifar_lab.data.sources import progress
from cifar_lab.errors import UsageError
from cifar_lab.experiment_files import experiment_name
from cifar_lab.tracking import evaluations, queries, store
from cifar_lab.tracking.load import config_of, dataset_of
from cifar_lab.tracking.lookup import find_finished
from cifar_lab.tracking.models import Model, model_of

OWN = "test"  # the run's own test images, in tables
PERCENT = ("acc", "ece")  # the other scores are shown as they are
TITLES = {"acc": "accuracy, percent", "nll": "NLL", "brier": "Brier score", "ece": "ECE, percent"}


@dataclass(frozen=True)
class Subject:
    """A run that is tested, the temperature of its probabilities (nan without validation images), and its scores.

    rows: the scores on each kind of images and strength, first on the run's own test images. auroc: against foreign
    images; nan without any.
    """

    run: Run
    model: Model
    temperature: float
    auroc: float
    rows: list[dict[str, float | str]]

    def mean(self, score: str, name: str | None = None) -> float:
        """A score on the images `name`, or on all that are not its own, averaged over strengths."""
        chosen = [row[score] for row in self.rows if (row["images"] == name if name else row["images"] != OWN)]
        return float(np.mean(np.array(chosen, float)))


def run(options: argparse.Namespace) -> int:
    """Print how good the probabilities of some runs are on other images, and track it with them. Raises UserError."""
    client = store.connect()
    parent, runs = find_finished(client, experiment_name(options.run))
    dataset = dataset_of(client, runs[0])
    others = find_others(options.data, dataset, options.corruptions)
    foreign = _foreign(options.against, dataset)
    print(f"{(parent or runs[0]).info.run_name}, n = {len(runs)}; {dataset.title}; {others.title}")
    subjects = [_subject(client, run, dataset, foreign, options.trust) for run in runs]
    for name in progress(others.names, "testing"):
        images, labels = others.load(name)
        for subject in subjects:
            for strength, some in enumerate(images, 1):
                found = scores(subject.model(some), labels, subject.temperature)
                subject.rows.append({"images": name, "strength": strength, **found})
    if others.corrupted:
        print(f"\naccuracy by strength, percent\n\n{_accuracy_table(subjects, others)}")
    print(f"\n{_score_table(_summaries(subjects, others, foreign))}")
    if np.isfinite(temperatures := [subject.temperature for subject in subjects]).all():
        print(f"\ntemperature, fitted on the validation images: {_shown(temperatures)}")
    else:
        print("\nno temperature scaling: these runs have no validation images to fit it on")
    if foreign:
        aurocs = _shown([subject.auroc for subject in subjects])
        print(f"\nAUROC of the top probability, test images against {foreign.title}: {aurocs}")
    if len(runs) > 1:
        print("\n±: half of the 95 % interval over seeds (Student's t)")
    _track(client, parent, subjects, others, foreign)
    return 0


def _foreign(against: str | None, dataset: Dataset) -> Dataset | None:
    """The data set that `--against` names. Raises UsageError if the runs were trained on it."""
    if not against:
        return None
    named = against in NAMES[1:]
    foreign, _ = load_dataset(against if named else "auto", None if named else Path(against))
    if foreign.digest == dataset.digest:
        raise UsageError(f"--against {against}: these are the images that the runs know")
    return foreign


def _subject(client: MlflowClient, run: Run, dataset: Dataset, foreign: Dataset | None, trust: bool) -> Subject:
    model, labels = model_of(client, run, trust), dataset.labels
    config = config_of(client, run, trust).of_run(queries.seed_of(run))
    _, validation = split_train(labels["train"], config.data)
    temperature = float("nan")
    if len(validation):
        temperature = fit_temperature(model(dataset.images["train"][validation]), labels["train"][validation])
    probabilities = model(dataset.images["test"])
    auroc = foreign_auroc(probabilities, model(foreign.images["test"])) if foreign else float("nan")
    own: dict[str, float | str] = {"images": OWN, "strength": 0, **scores(probabilities, labels["test"], temperature)}
    return Subject(run, model, temperature, auroc, [own])


def _shown(values: Sequence[float], factor: int = 1) -> str:
    """The mean of one value per seed, and half of its 95 % interval if there are several."""
    summary, digits = summarise(values), 1 if factor > 1 else 4
    half = f" ± {factor * (summary.ci_high - summary.mean):.{digits}f}" if summary.n > 1 else ""
    return f"{factor * summary.mean:.{digits}f}{half}"


def _accuracies(subjects: Sequence[Subject], others: Others) -> np.ndarray:
    """(seeds, names, strengths)."""
    found = [[row["acc"] for row in subject.rows if row["images"] != OWN] for subject in subjects]
    return np.array(found, float).reshape(len(subjects), len(others.names), -1)


def _accuracy_table(subjects: Sequence[Subject], others: Others) -> str:
    accuracies = _accuracies(subjects, others)
    means = accuracies.mean(axis=0)
    rows = [
        [name, *(f"{100 * mean:.1f}" for mean in means[i]), _shown(accuracies[:, i].mean(axis=1), 100)]
        for i, name in enumerate(others.names)
    ]
    if len(rows) > 1:
        over_names = (f"{100 * mean:.1f}" for mean in means.mean(axis=0))
        rows.append(["mean", *over_names, _shown(accuracies.mean(axis=(1, 2)), 100)])
    return markdown_table(["", *map(str, range(1, means.shape[1] + 1)), "mean"], rows)


def _summaries(
    subjects: Sequence[Subject], others: Others, foreign: Dataset | None
) -> dict[tuple[str, str], list[float]]:
    """By images and score the values of all seeds, averaged over corruptions and strengths."""
    names = [name for name in subjects[0].rows[0] if name not in ("images", "strength")]
    found = {
        (images, score): [subject.mean(score, OWN if images == OWN else None) for subject in subjects]
        for images in (OWN, others.key)
        for score in names
    }
    return found | ({(foreign.name, "auroc"): [subject.auroc for subject in subjects]} if foreign else {})


def _score_table(summaries: Mapping[tuple[str, str], list[float]]) -> str:
    rows = []
    for images in dict.fromkeys(images for images, _ in summaries):
        for kind, ending in (("as trained", ""), ("temperature scaled", "_scaled")):
            if (images, f"nll{ending}") in summaries:
                names = ["acc", *(f"{score}{ending}" for score in ("nll", "brier", "ece"))]
                factors = (100 if name.startswith(PERCENT) else 1 for name in names)
                cells = [_shown(summaries[images, name], factor) for name, factor in zip(names, factors, strict=True)]
                rows.append([images, kind, *cells])
    return markdown_table(["images", "probabilities", *TITLES.values()], rows)


def _track(
    client: MlflowClient, parent: Run | None, subjects: Sequence[Subject], others: Others, foreign: Dataset | None
) -> None:
    values = [_metrics(subject, others, foreign) for subject in subjects]
    tables = [pd.DataFrame([{"seed": queries.seed_of(s.run), **row} for row in s.rows]) for s in subjects]
    for subject, found, table in zip(subjects, values, tables, strict=True):
        evaluations.log_values(client, subject.run, found, beside="test/acc")
        if others.complete and parent:
            csv = {others.key: table.to_csv(index=False)}
            evaluations.log_artifacts(client, subject.run, others.key, others.title, csv, None)
    if parent:
        evaluations.log_values(client, parent, _over_seeds(values, others), beside="n")
    if not others.complete:
        print("\nonly metrics are tracked: heatmap, tables and means need all corruptions", file=sys.stderr)
        return
    target = parent or subjects[0].run
    summaries = _summaries(subjects, others, foreign).items()
    lines = [{"images": images, "score": score, **vars(summarise(found))} for (images, score), found in summaries]
    csv = {
        others.key: pd.concat(tables).to_csv(index=False),
        f"{others.key}-scores": pd.DataFrame(lines).to_csv(index=False),
    }
    figure = None
    if others.corrupted:
        seeds = f", mean of {len(subjects)} seeds" if len(subjects) > 1 else ""
        title = f"{target.info.run_name}{seeds}\n{others.title}"
        figure = plot_corruptions(_accuracies(subjects, others).mean(axis=0), others.names, title)
    evaluations.log_artifacts(client, target, others.key, others.title, csv, figure)
    print(f"\ntracked with {target.info.run_name}: {evaluations.FOLDER}/{others.key}.csv and others")


def _metrics(subject: Subject, others: Others, foreign: Dataset | None) -> dict[str, float]:
    """The metrics of a run. Means over all corruptions only if there are all."""
    own = subject.rows[0]
    found = {f"calibration/{name}": float(own[name]) for name in own if name not in ("images", "strength", "acc")}
    if np.isfinite(subject.temperature):
        found["calibration/temperature"] = subject.temperature
    if others.corrupted:
        found |= {f"{others.key}/{name}": subject.mean("acc", name) for name in others.names}
    if others.complete:
        names = [name for name in own if name not in ("images", "strength", "acc")]
        found |= {f"{others.key}/{name}": subject.mean(name) for name in names}
        found[f"{others.key}/acc_mean"] = subject.mean("acc")
    return found | ({f"ood/{foreign.name}": subject.auroc} if foreign else {})


def _over_seeds(values: Sequence[Mapping[str, float]], others: Others) -> dict[str, float]:
    """The metrics of the parent run: means over seeds, under the same names, and some 95 % intervals."""
    found = {f"{others.key}/n": float(len(values))}
    for name in values[0]:
        summary = summarise([value[name] for value in values])
        found[name] = summary.mean
        if summary.n > 1 and (name.endswith("/acc_mean") or name.startswith("ood/")):
            found |= {f"{name}_ci_low": summary.ci_low, f"{name}_ci_high": summary.ci_high}
    return found
