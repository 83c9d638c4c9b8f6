"""One classifier for all classes against one-vs-one: which is better, and which pairs of classes are hard?"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.tables import interval, number
from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UsageError
from cifar_lab.execution.cluster import Cluster
from cifar_lab.execution.experiment import run_experiments
from cifar_lab.execution.local import Pool
from cifar_lab.execution.repeats import Repeats
from cifar_lab.tracking import queries, store, summaries
from cifar_lab.tracking.lookup import load_comparison

SHOWN = 5  # pairs


def run_pairs(
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    dataset: Dataset,
    fallback_reason: str,
    workers: Pool | Cluster,
) -> int:
    """Train each of `configs` as it is and one-vs-one, then print the hardest pairs and the difference.

    Returns 0, 1 if a run failed, 130 if interrupted. Raises UsageError if a config is one-vs-one already.
    """
    both: dict[str, Config] = {}
    for name, config in configs.items():
        if config.model.one_vs_one:
            raise UsageError(f"{name}: pairs sets model.one_vs_one itself; leave it out")
        pairs = config.model.model_copy(update={"one_vs_one": True})
        both |= {name: config, f"{name}-pairs": config.model_copy(update={"model": pairs})}
    code, planned = run_experiments(both, seeds, dataset, fallback_reason, workers)
    if code == 0:
        client = store.connect()
        for multiclass, one_vs_one in zip(planned[::2], planned[1::2], strict=True):
            _print_answer(client, multiclass, one_vs_one)
    return code


def _print_answer(client: MlflowClient, multiclass: Repeats, one_vs_one: Repeats) -> None:
    finished, parent_id = queries.finished_runs(client, one_vs_one.parent), one_vs_one.parent.info.run_id
    accuracies = np.stack([summaries.load_pairs(client, run) for run in finished])
    names = [f"{first} - {second}" for first, second in combinations(one_vs_one.dataset.classes, 2)]
    title = f"{one_vs_one.name}, mean of {len(finished)} seeds"
    summaries.log_pairs(client, parent_id, accuracies.mean(axis=0), one_vs_one.dataset.classes, title)
    order = np.argsort(accuracies.mean(axis=0))
    print(f"\n{one_vs_one.name}: accuracy on the test images of the two classes, n = {len(finished)}")
    for label, shown in ("hardest", order[:SHOWN]), ("easiest", order[: -SHOWN - 1 : -1]):
        print(f"  {label}: " + "; ".join(f"{names[i]} {summarise(accuracies[:, i])}" for i in shown))
    print(f"  all {len(names)}: artifacts pairs/ of run {parent_id}")
    comparison = load_comparison(client, [parent_id, multiclass.parent.info.run_id], "test/acc")
    (difference,) = comparison.differences
    each = ", ".join(f"{item.name} {item.summary}" for item in comparison.items)
    mean, *bounds = (number("test/acc", value, "+") for value in (difference.mean, *difference.ci))
    print(
        f"test accuracy: {each}; difference {mean} points, 95 % interval {interval(*bounds)}, p = {difference.p:.3g}, "
        f"n = {difference.n} {'paired' if difference.paired else 'each'}: {difference.verdict}"
    )
