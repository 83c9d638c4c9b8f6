"""Sets of repeats that are asked for by name, to be compared: which runs, what they gave, what it tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import Difference, Sample, Summary, compare, summarise
from cifar_lab.config import load_config
from cifar_lab.errors import UsageError, UserError
from cifar_lab.tracking import queries, recovery


@dataclass(frozen=True)
class Sets:
    """Sets of repeats on the same images and split: parents, finished runs, one metric of them, and what it tells."""

    parents: list[Run]
    finished: list[list[Run]]
    samples: list[Sample]
    summaries: list[Summary]
    differences: list[Difference]


def load_sets(client: MlflowClient, names: Sequence[str], metric: str) -> Sets:
    """The sets of repeats that are meant by experiment names, config hashes or parent run ids.

    Raises UserError if one is not there or they can't be compared, UsageError if one has no such metric.
    """
    parents = [_find_repeats(client, name) for name in names]
    if len({parent.info.run_id for parent in parents}) < len(parents):
        raise UsageError(f"two of {', '.join(names)} are the same repeats")
    finished = [queries.finished_runs(client, parent) for parent in parents]
    for parent, children in zip(parents, finished, strict=True):
        if metric not in children[0].data.metrics:
            raise UsageError(f"--metric {metric}: {parent.info.run_name} has none; its config says why (data, trainer)")
    samples = [sample_of(client, parent, metric, _label(parent, parents)) for parent in parents]
    summaries = [summarise(list(sample.values.values())) for sample in samples]
    return Sets(parents, finished, samples, summaries, compare(samples))


def values_of(sets: Sets) -> dict[str, np.ndarray]:
    """The metric of each set, (seeds,), by name."""
    return {sample.name: np.array(list(sample.values.values())) for sample in sets.samples}


def curves_of(client: MlflowClient, sets: Sets) -> tuple[str, dict[str, np.ndarray]]:
    """The accuracy that is there after every epoch, val/acc or train/acc; of each set (seeds, epochs), by name."""
    curve = "val/acc" if "val/acc" in sets.finished[0][0].data.metrics else "train/acc"  # all have the same split
    return curve, {
        sample.name: np.stack([queries.history(client, run.info.run_id, curve) for run in children])
        for sample, children in zip(sets.samples, sets.finished, strict=True)
    }


def sample_of(client: MlflowClient, parent: Run, metric: str, name: str) -> Sample:
    """What the finished runs under `parent` gave."""
    return Sample(
        name,
        metric,
        client.get_experiment(parent.info.experiment_id).name + " " + parent.data.tags["data_digest"][:12],
        parent.data.tags["split_digest"],
        {int(run.data.tags["seed"]): run.data.metrics[metric] for run in queries.finished_runs(client, parent)},
    )


def _find_repeats(client: MlflowClient, name: str) -> Run:
    """The parent run that is meant: by its name as its experiment file is now, its config hash, or its run id."""
    found = [parent for parent in queries.find_parents(client, name) if queries.finished_runs(client, parent)]
    if len(found) > 1:
        found = [parent for parent in found if _is_as_in_file(name, parent)] or found
    if not found:
        raise UserError(f"{name}: no finished runs of that name, config hash or run id; make experiment trains some")
    if len(found) > 1:
        hashes = len({parent.data.tags["config_hash"] for parent in found}) == len(found)
        what = "the hash" if hashes else "the run id"
        listed = ", ".join(
            f"{parent.data.tags['config_hash'] if hashes else parent.info.run_id} "
            f"({client.get_experiment(parent.info.experiment_id).name}, "
            f"n = {len(queries.finished_runs(client, parent))}, {parent.data.params.get('trainer.epochs')} epochs)"
            for parent in sorted(found, key=lambda parent: parent.data.tags["config_hash"])
        )
        raise UserError(f"{name} names {len(found)} sets of repeats; give {what} of one: {listed}")
    return found[0]


def _is_as_in_file(name: str, parent: Run) -> bool:
    try:
        settings = load_config(name).flat()
    except UsageError:
        return False  # a hash, or no such file any more
    decided = {key for key in ("data.val_size", "trainer.precision") if settings[key] in (None, "auto")}
    then, now = parent.data.params.get("data.classes", ""), map(repr, settings["data.classes"])
    if sorted(then.strip("(),").split(", ") if then != "()" else []) != sorted(now):  # in the order of the data set
        return False
    decided.add("data.classes")
    return all(key in decided or parent.data.params.get(key) == str(value) for key, value in settings.items())


def _label(parent: Run, parents: Sequence[Run]) -> str:
    name = parent.info.run_name
    alone = [other.info.run_name for other in parents].count(name) == 1
    return name if alone else f"{name} {parent.data.tags['config_hash']}"


def remarks(sets: Sets) -> list[str]:
    """What a reader has to know before trusting the figures."""
    lines = []
    common = set.intersection(*(set(sample.values) for sample in sets.samples))
    if len(common) > 1 and (alone := set.union(*(set(sample.values) for sample in sets.samples)) - common):
        lines.append(f"not all have these seeds: {', '.join(map(str, sorted(alone)))}")
    for tag, name in recovery.ENVIRONMENT.items():
        if (kinds := len({run.data.tags.get(tag) for children in sets.finished for run in children})) > 1:
            lines.append(f"the runs were not all made with the same {name}, but with {kinds}")
    return lines
