"""Test trained runs on other images: corrupted ones, published test sets, images of another kind."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.calibration import fit_temperature, foreign_auroc, scores
from cifar_lab.analysis.comparison import Summary, summarise
from cifar_lab.analysis.heatmaps import plot_corruptions
from cifar_lab.analysis.tables import ENSEMBLE, SCORE_HEADER, markdown_table, mean_and_half, score_rows
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
from cifar_lab.training.hardware import keep_freed_memory

OWN = "test"  # the run's own test images, in tables
Row = dict[str, float | str]  # "images", "strength" and scores


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
    rows: list[Row] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Print how good the probabilities of some runs are on other images, and track it with them. Raises UserError."""
    keep_freed_memory()
    client = store.connect()
    parent, runs = find_finished(client, experiment_name(options.run))
    dataset = dataset_of(client, runs[0])
    others = find_others(options.data, dataset, options.corruptions)
    foreign = _foreign(options.against, dataset)
    print(f"{(parent or runs[0]).info.run_name}, n = {len(runs)}; {dataset.title}; {others.title}")
    subjects = [_subject(client, run, dataset, foreign, options.trust) for run in runs]
    ensemble = [_test(subjects, OWN, 0, dataset.images["test"], dataset.labels["test"])]
    for name in progress(others.names, "testing"):
        images, labels = others.load(name)
        ensemble += [_test(subjects, name, strength, some, labels) for strength, some in enumerate(images, 1)]
    if others.corrupted:
        print(f"\naccuracy by strength, percent\n\n{_accuracy_table(subjects, ensemble, others)}")
    summaries = _summaries(subjects, ensemble, others, foreign)
    print(f"\n{markdown_table(SCORE_HEADER, score_rows(summaries))}")
    if np.isfinite(temperatures := [subject.temperature for subject in subjects]).all():
        shown = mean_and_half("temperature", summarise(temperatures))
        print(f"\ntemperature, fitted on the validation images: {shown}")
    else:
        print("\nno temperature scaling: these runs have no validation images to fit it on")
    if foreign:
        auroc = mean_and_half("auroc", summaries[foreign.name, "auroc"])
        print(f"\nAUROC of the top probability, test images against {foreign.title}: {auroc}")
    if len(runs) > 1:
        print("\n±: half of the 95 % interval over seeds (Student's t); ensemble: the mean of all seeds' probabilities")
    _track(client, parent, subjects, ensemble, summaries, others, foreign)
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
    auroc = float("nan")
    if foreign:
        auroc = foreign_auroc(model(dataset.images["test"]), model(foreign.images["test"]))
    return Subject(run, model, temperature, auroc)


def _test(subjects: Sequence[Subject], name: str, strength: int, images: np.ndarray, labels: np.ndarray) -> Row:
    """Add a row to each subject; returns that of their ensemble, the mean of their probabilities."""
    row: Row = {"images": name, "strength": strength}
    total = np.zeros((), np.float32)
    for subject in subjects:
        probabilities = subject.model(images)
        subject.rows.append({**row, **scores(probabilities, labels, subject.temperature)})
        total = total + probabilities
    return {**row, **scores(total / len(subjects), labels)}


def _mean(rows: Sequence[Row], score: str, name: str | None = None) -> float:
    """A score on the images `name`, or on all that are not the runs' own, averaged over strengths."""
    chosen = [row[score] for row in rows if (row["images"] == name if name else row["images"] != OWN)]
    return float(np.mean(np.array(chosen, float)))


def _accuracies(rows: Sequence[Row], others: Others) -> np.ndarray:
    """(names, strengths)."""
    found = [row["acc"] for row in rows if row["images"] != OWN]
    return np.array(found, float).reshape(len(others.names), -1)


def _accuracy_table(subjects: Sequence[Subject], ensemble: Sequence[Row], others: Others) -> str:
    seeds, together = np.stack([_accuracies(s.rows, others) for s in subjects]), _accuracies(ensemble, others)
    names = [*others.names]
    if len(names) > 1:
        names.append("mean")
        seeds = np.concatenate([seeds, seeds.mean(1, keepdims=True)], 1)
        together = np.concatenate([together, together.mean(0, keepdims=True)])
    header, rows = ["", *map(str, range(1, seeds.shape[2] + 1)), "mean"], []
    for i, name in enumerate(names):
        means = (f"{100 * mean:.1f}" for mean in seeds[:, i].mean(0))
        rows.append([name, *means, mean_and_half("acc", summarise(seeds[:, i].mean(1)))])
    if len(subjects) > 1:
        header.append("ensemble")
        for row, accuracies in zip(rows, together, strict=True):
            row.append(f"{100 * accuracies.mean():.1f}")
    return markdown_table(header, rows)


def _summaries(
    subjects: Sequence[Subject], ensemble: Sequence[Row], others: Others, foreign: Dataset | None
) -> dict[tuple[str, str], Summary]:
    """Each score over seeds by images and name, averaged over corruptions and strengths; with those of the ensemble."""
    found = {}
    for images, name in ((OWN, OWN), (others.key, None)):
        for score in _scores_in(subjects[0].rows):
            found[images, score] = summarise([_mean(subject.rows, score, name) for subject in subjects])
        if len(subjects) > 1:
            for score in _scores_in(ensemble):
                found[images, f"{score}{ENSEMBLE}"] = summarise([_mean(ensemble, score, name)])
    return found | ({(foreign.name, "auroc"): summarise([s.auroc for s in subjects])} if foreign else {})


def _scores_in(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if name not in ("images", "strength")]


def _track(
    client: MlflowClient,
    parent: Run | None,
    subjects: Sequence[Subject],
    ensemble: Sequence[Row],
    summaries: Mapping[tuple[str, str], Summary],
    others: Others,
    foreign: Dataset | None,
) -> None:
    values = [_metrics(subject, others, foreign) for subject in subjects]
    tables = [pd.DataFrame([{"seed": queries.seed_of(s.run), **row} for row in s.rows]) for s in subjects]
    for subject, found, table in zip(subjects, values, tables, strict=True):
        evaluations.log_values(client, subject.run, found, beside="test/acc")
        if others.complete and parent:
            csv = {others.key: table.to_csv(index=False)}
            evaluations.log_artifacts(client, subject.run, others.key, others.title, csv, None)
    if parent:
        over_seeds = _over_seeds(values, others)
        if others.complete and len(subjects) > 1:
            over_seeds[f"{others.key}/acc_ensemble"] = _mean(ensemble, "acc")
        evaluations.log_values(client, parent, over_seeds, beside="n")
    if not others.complete:
        print("\nonly metrics are tracked: heatmap, tables and means over corruptions need all", file=sys.stderr)
        return
    target = parent or subjects[0].run
    lines = [{"images": images, "score": score, **vars(found)} for (images, score), found in summaries.items()]
    csv = {
        others.key: pd.concat(tables).to_csv(index=False),
        evaluations.SCORES.format(others.key): pd.DataFrame(lines).to_csv(index=False),
    }
    figure = None
    if others.corrupted:
        seeds = f", mean of {len(subjects)} seeds" if len(subjects) > 1 else ""
        title = f"{target.info.run_name}{seeds}\n{others.title}"
        means = np.mean([_accuracies(subject.rows, others) for subject in subjects], axis=0)
        figure = plot_corruptions(means, others.names, title)
    evaluations.log_artifacts(client, target, others.key, others.title, csv, figure)
    print(f"\ntracked with {target.info.run_name}: {evaluations.FOLDER}/{others.key}.csv and others")


def _metrics(subject: Subject, others: Others, foreign: Dataset | None) -> dict[str, float]:
    """The metrics of a run. Means over all corruptions only if there are all."""
    own = subject.rows[0]
    calibration = [name for name in _scores_in(subject.rows) if name != "acc"]
    found = {f"calibration/{name}": float(own[name]) for name in calibration}
    if np.isfinite(subject.temperature):
        found["calibration/temperature"] = subject.temperature
    if others.corrupted:
        found |= {f"{others.key}/{name}": _mean(subject.rows, "acc", name) for name in others.names}
    if others.complete:
        found |= {f"{others.key}/{name}": _mean(subject.rows, name) for name in calibration}
        found[f"{others.key}/acc_mean"] = _mean(subject.rows, "acc")
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
