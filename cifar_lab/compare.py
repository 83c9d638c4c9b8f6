"""Sets of repeats beside one another: which is higher, by how much, and whether there are enough seeds to tell."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab import runs, store
from cifar_lab.comparison import Difference, Sample, Summary, compare, summarise
from cifar_lab.config import UsageError, UserError, load_config
from cifar_lab.figures import plot_comparison
from cifar_lab.sources import staged


def compare_experiments(names: Sequence[str], metric: str, figure: Path) -> int:
    """Print the table of `metric` of each set of repeats and of each pair's difference; draw them into `figure`."""
    client = store.connect()
    parents = [_find_repeats(client, name) for name in names]
    if len({parent.info.run_id for parent in parents}) < len(parents):
        raise UsageError(f"two of {', '.join(names)} are the same repeats")
    finished = [runs.finished_runs(client, parent) for parent in parents]
    for parent, children in zip(parents, finished, strict=True):
        if metric not in children[0].data.metrics:
            raise UsageError(f"--metric {metric}: {parent.info.run_name} has none; its config says why (data, trainer)")
    samples = [sample_of(client, parent, metric, _label(parent, parents)) for parent in parents]
    differences = compare(samples)
    summaries = [summarise(list(sample.values.values())) for sample in samples]
    print(f"{metric}{_unit(metric)}; images {samples[0].data}, split {samples[0].split}\n")
    print(_table(("experiment", "n", "mean", "std", "95 % interval"), map(_summary_row, samples, summaries)))
    if differences:
        header = ("difference", "n", "mean", "95 % interval, t", "95 % interval, bootstrap", "p", "enough seeds?")
        print(f"\n{_table(header, map(_difference_row, differences))}")
        print(f"\nn: seeds that both have, compared seed by seed, or of both together. {_method(differences)}")
    for sample, parent in zip(samples, parents, strict=True):
        for line in _duplicates(client, parent):
            print(f"{sample.name}: {line}")
    for line in _remarks(samples, finished):
        print(line)
    curve = "val/acc" if "val/acc" in finished[0][0].data.metrics else "train/acc"  # all have the same split
    curves = {
        sample.name: np.stack([runs.history(client, run.info.run_id, curve) for run in children])
        for sample, children in zip(samples, finished, strict=True)
    }
    values = {sample.name: np.array(list(sample.values.values())) for sample in samples}
    with staged(figure) as path:
        plot_comparison(values, summaries, curves, metric, curve).savefig(path, format=figure.suffix[1:], dpi=110)
    print(f"\ndrawn in {figure}")
    return 0


def sample_of(client: MlflowClient, parent: Run, metric: str, name: str) -> Sample:
    """What the finished runs under `parent` gave."""
    return Sample(
        name,
        metric,
        client.get_experiment(parent.info.experiment_id).name + " " + parent.data.tags["data_digest"][:12],
        parent.data.tags["split_digest"],
        {int(run.data.tags["seed"]): run.data.metrics[metric] for run in runs.finished_runs(client, parent)},
    )


def _find_repeats(client: MlflowClient, name: str) -> Run:
    """The parent run that is meant: by its name as its experiment file is now, its config hash, or its run id."""
    found = [parent for parent in runs.find_parents(client, name) if runs.finished_runs(client, parent)]
    if len(found) > 1:
        found = [parent for parent in found if _is_as_in_file(name, parent)] or found
    if not found:
        raise UserError(f"{name}: no finished runs of that name, config hash or run id; make experiment trains some")
    if len(found) > 1:
        listed = ", ".join(
            f"{parent.data.tags['config_hash']} ({client.get_experiment(parent.info.experiment_id).name}, "
            f"n = {len(runs.finished_runs(client, parent))}, {parent.data.params['trainer.epochs']} epochs)"
            for parent in sorted(found, key=lambda parent: parent.data.tags["config_hash"])
        )
        raise UserError(f"{name} names {len(found)} sets of repeats; give the hash of one: {listed}")
    return found[0]


def _is_as_in_file(name: str, parent: Run) -> bool:
    try:
        settings = load_config(name).flat()
    except UsageError:
        return False  # a hash, or no such file any more
    decided = {key for key in ("data.val_size", "trainer.precision") if settings[key] in (None, "auto")}
    return all(key in decided or parent.data.params.get(key) == str(value) for key, value in settings.items())


def _label(parent: Run, parents: Sequence[Run]) -> str:
    name = parent.info.run_name
    alone = [other.info.run_name for other in parents].count(name) == 1
    return name if alone else f"{name} {parent.data.tags['config_hash']}"


def _duplicates(client: MlflowClient, parent: Run) -> list[str]:
    seeds = sorted(int(r.data.tags["seed"]) for r in runs.children(client, parent) if r.info.status == "FINISHED")
    return [f"seed {seed} finished {n} times; only the first counts" for seed, n in Counter(seeds).items() if n > 1]


def _remarks(samples: Sequence[Sample], finished: Sequence[Sequence[Run]]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    lines = []
    common = set.intersection(*(set(sample.values) for sample in samples))
    if len(common) > 1 and (alone := set.union(*(set(sample.values) for sample in samples)) - common):
        lines.append(f"not all have these seeds: {', '.join(map(str, sorted(alone)))}")
    for tag, name in runs.CIRCUMSTANCES.items():
        if (kinds := len({run.data.tags.get(tag) for children in finished for run in children})) > 1:
            lines.append(f"the runs were not all made with the same {name}, but with {kinds}")
    return lines


def _unit(metric: str) -> str:
    return ", percent" if metric.endswith("acc") else ""


def _number(metric: str, value: float, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if metric.endswith("acc") else f"{value:{sign}.4f}"


def _interval(low: str, high: str) -> str:
    return low if low == "-" else f"{low} to {high}"


def _summary_row(sample: Sample, summary: Summary) -> list[str]:
    mean, std, low, high = (
        _number(sample.metric, value) for value in (summary.mean, summary.std, summary.ci_low, summary.ci_high)
    )
    return [f"`{sample.name}`", str(summary.n), mean, std, _interval(low, high)]


def _difference_row(difference: Difference) -> list[str]:
    metric = difference.metric
    mean, *bounds = (
        _number(metric, value, "+") for value in (difference.mean, *difference.ci, *difference.bootstrap_ci)
    )
    return [
        f"`{difference.first}` - `{difference.second}`",
        f"{difference.n} {'paired' if difference.paired else 'each'}",
        mean,
        _interval(*bounds[:2]),
        _interval(*bounds[2:]),
        "-" if np.isnan(difference.p) else f"{difference.p:.3g}",
        difference.verdict,
    ]


def _method(differences: Sequence[Difference]) -> str:
    pairs = sum(not np.isnan(difference.p) for difference in differences)
    adjusted = f", adjusted for {pairs} pairs (Holm)" if pairs > 1 else ""
    caution = "the bootstrap's (BCa) is too narrow for few seeds: quote t"
    return f"p: permutation test{adjusted}. Intervals are of one pair at a time; {caution}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, aligned to be read as it is."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
