"""Repeats looked up by name, to compare them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import Difference, Sample, Summary, compare, summarise
from cifar_lab.analysis.uncertainty import ensemble_accuracy
from cifar_lab.config import load_config
from cifar_lab.errors import UsageError, UserError
from cifar_lab.experiment_files import split_variant
from cifar_lab.tracking import lifecycle, queries, recovery, summaries
from cifar_lab.tracking.artifacts import load_arrays, text_digest


@dataclass(frozen=True)
class Item:
    """The repeats of one experiment: their parent, the finished runs, and one metric of them."""

    parent: Run
    finished: list[Run]
    sample: Sample
    summary: Summary

    @property
    def name(self) -> str:
        return self.sample.name


@dataclass(frozen=True)
class Comparison:
    """Repeats on the same images and split, and the difference of each pair."""

    items: list[Item]
    differences: list[Difference]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The metric of each item, (seeds,), by name."""
        return {item.name: np.array([*item.sample.values.values()]) for item in self.items}

    @property
    def summaries(self) -> list[Summary]:
        return [item.summary for item in self.items]

    @property
    def remarks(self) -> list[str]:
        """Warnings: not all have the same seeds, or the environments differ."""
        lines = []
        seeds = [set(item.sample.values) for item in self.items]
        common = set.intersection(*seeds)
        if len(common) > 1 and (alone := set.union(*seeds) - common):
            lines.append(f"only some experiments have these seeds: {', '.join(map(str, sorted(alone)))}")
        runs = [run for item in self.items for run in item.finished]
        for tag, name in recovery.ENVIRONMENT.items():
            if (kinds := len({run.data.tags.get(tag) for run in runs})) > 1:
                lines.append(f"the runs differ in {name}: {kinds} different values")
        return lines


def load_comparison(client: MlflowClient, names: Sequence[str], metric: str, margin: float = 0.0) -> Comparison:
    """The repeats with these experiment names, config hashes or parent run ids; margin: see compare.

    Records which seeds were compared first, so that those that come later are marked in later results. Raises UserError
    if one is missing or they can't be compared, UsageError if one does not have the metric.
    """
    parents = find_each(client, names)
    items = []
    for parent in parents:
        finished = queries.finished_runs(client, parent)
        if metric not in finished[0].data.metrics:
            raise UsageError(f"--metric {metric}: not logged for {parent.info.run_name}, because of its config")
        sample = sample_of(client, parent, metric, _label(parent, parents))
        items.append(Item(parent, finished, sample, summarise([*sample.values.values()])))
    differences = compare([item.sample for item in items], margin)
    for item in items if differences else []:
        lifecycle.mark_compared(client, item.parent, item.sample.values)
    return Comparison(items, differences)


def curves_of(client: MlflowClient, comparison: Comparison) -> tuple[str, dict[str, np.ndarray]]:
    """val/acc, or train/acc without validation images, and its curves: (seeds, epochs) by name."""
    validated = "val/acc" in comparison.items[0].finished[0].data.metrics  # the split is the same for all
    curve = "val/acc" if validated else "train/acc"
    return curve, {
        item.name: np.stack([queries.history(client, run.info.run_id, curve) for run in item.finished])
        for item in comparison.items
    }


def sample_of(client: MlflowClient, parent: Run, metric: str, name: str) -> Sample:
    """The metric of the finished runs of `parent`, and for an accuracy their answers."""
    runs = {queries.seed_of(run): run for run in queries.finished_runs(client, parent)}
    correct, ensemble = {}, math.nan
    path = summaries.PREDICTIONS.format(metric.partition("/")[0])
    if metric in ("val/acc", "test/acc") and all(text_digest(run, path) for run in runs.values()):
        predictions = {seed: load_arrays(client, run, path) for seed, run in runs.items()}
        labels = next(iter(predictions.values()))["labels"]
        correct = {seed: arrays["probabilities"].argmax(1) == labels for seed, arrays in predictions.items()}
        ensemble = ensemble_accuracy(np.stack([arrays["probabilities"] for arrays in predictions.values()]), labels)
    compared = parent.data.tags.get(lifecycle.COMPARED, "")
    return Sample(
        name,
        metric,
        f"{client.get_experiment(parent.info.experiment_id).name} {parent.data.tags['data_digest'][:12]}",
        parent.data.tags["split_digest"],
        {seed: run.data.metrics[metric] for seed, run in runs.items()},
        correct,
        ensemble,
        frozenset(seed for seed in runs if compared and str(seed) not in compared.split(",")),
    )


def find_each(client: MlflowClient, names: Sequence[str]) -> list[Run]:
    """find_repeats for each name. Raises UsageError if two of them name the same runs."""
    parents = [find_repeats(client, name) for name in names]
    if len({parent.info.run_id for parent in parents}) < len(parents):
        raise UsageError(f"two of {', '.join(names)} name the same runs")
    return parents


def find_repeats(client: MlflowClient, name: str) -> Run:
    """The parent run with this config hash, run id, or experiment name; of several, that of the file as it is now."""
    found = _with_results(client, name)
    if not found and (plain := split_variant(name)[0]) != name:  # the file has that value, so the runs have its name
        found = [parent for parent in _with_results(client, plain) if _is_as_in_file(name, parent)]
    if len(found) > 1:
        found = [parent for parent in found if _is_as_in_file(name, parent)] or found
    if not found:
        raise UserError(f"{name}: no finished runs with that name, config hash or run id; make experiment trains some")
    if len(found) > 1:
        hashes = len({parent.data.tags["config_hash"] for parent in found}) == len(found)
        what = "the hash" if hashes else "the run id"
        listed = ", ".join(
            f"{parent.data.tags['config_hash'] if hashes else parent.info.run_id} "
            f"({client.get_experiment(parent.info.experiment_id).name}, "
            f"n = {len(queries.finished_runs(client, parent))}, {parent.data.params.get('trainer.epochs')} epochs)"
            for parent in sorted(found, key=lambda parent: parent.data.tags["config_hash"])
        )
        raise UserError(f"{name} names {len(found)} experiments; give {what} of one: {listed}")
    return found[0]


def find_finished(client: MlflowClient, name: str) -> tuple[Run | None, list[Run]]:
    """The parent and all finished runs of an experiment (see find_repeats); or no parent, and the run with this id.

    Raises UserError.
    """
    if queries.find_parents(client, name) or not re.fullmatch("[0-9a-f]{1,32}", name):
        parent = find_repeats(client, name)
        return parent, queries.finished_runs(client, parent)
    return None, [queries.find_trained_run(client, name)]


def _with_results(client: MlflowClient, name: str) -> list[Run]:
    return [parent for parent in queries.find_parents(client, name) if queries.finished_runs(client, parent)]


def _is_as_in_file(name: str, parent: Run) -> bool:
    try:
        settings = load_config(name).flat()
    except UsageError:
        return False  # a hash, or the file is gone
    decided = {key for key in ("data.val_size", "trainer.precision") if settings[key] in (None, "auto")}
    then, now = parent.data.params.get("data.classes", ""), map(repr, settings["data.classes"])
    if sorted(then.strip("(),").split(", ") if then != "()" else []) != sorted(
        now
    ):  # the run has them in the data set's order
        return False
    decided.add("data.classes")
    return all(
        key in decided or parent.data.params.get(key, str(value)) == str(value) for key, value in settings.items()
    )


def _label(parent: Run, parents: Sequence[Run]) -> str:
    name = parent.info.run_name
    alone = [other.info.run_name for other in parents].count(name) == 1
    return name if alone else f"{name} {parent.data.tags['config_hash']}"
