"""Reading runs and their metrics from MLflow."""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from mlflow.entities import Run, ViewType
from mlflow.store.entities import PagedList
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError, printable

T = TypeVar("T")
CURVES = {"train": ("loss", "cross_entropy", "acc"), "val": ("loss", "acc")}
# Tags that identify a run, by its kind.
CONFIG = ("config_hash", "data_digest", "split_digest", "experiment")
TAGS = {
    "run": (*CONFIG, "seed"),
    "reproduction": (*CONFIG, "seed"),
    "trial": (*CONFIG, "seed", "trial"),
    "repeats": CONFIG,
    "trial-repeats": (*CONFIG, "trial", "study"),
    "sweep": (*CONFIG, "study"),
}


def _search(
    client: MlflowClient, experiment_id: str, condition: str, order_by: list[str] | None = None
) -> Iterator[Run]:
    """The runs that fulfil a condition in MLflow's syntax; skips runs not made by cifar_lab or with edited tags."""
    for run in pages(lambda token: client.search_runs([experiment_id], condition, order_by=order_by, page_token=token)):
        if fault := tag_fault(run.data.tags):
            _leave_out(run.info.run_name, run.info.run_id, fault)
        else:
            yield run


def pages(search: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """The results of all pages of one of MLflow's searches, which takes the token of a page."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def tag_fault(tags: Mapping[str, str]) -> str:
    """What is wrong with the tags of a run, which may have been edited; "" if nothing is."""
    kind = tags.get("kind")
    if kind not in TAGS:
        return "it was not made by cifar_lab"
    if missing := [tag for tag in TAGS[kind] if not tags.get(tag)]:
        return f"it has no tag {missing[0]}"
    wrong = [tag for tag in ("seed", "trial") if tag in TAGS[kind] and not re.fullmatch("[0-9]{1,18}", tags[tag])]
    return f"its tag {wrong[0]} is {tags[wrong[0]]!r}" if wrong else ""


@functools.cache  # warns once per run
def _leave_out(name: str, run_id: str, fault: str) -> None:
    logging.getLogger("cifar_lab").warning("run %s (%s) is left out: %s", printable(name), run_id, fault)


def find_run(client: MlflowClient, prefix: str) -> Run:
    """The run whose id begins with `prefix`. Raises UserError if there is none or more than one."""
    found = _anywhere(client, f"attributes.run_id LIKE '{prefix}%'") if re.fullmatch("[0-9a-f]{1,32}", prefix) else []
    if not found:
        raise UserError(f"no run has an id that begins with {prefix}; make best and make ui show ids")
    if len(found) > 1:
        raise UserError(f"{len(found)} runs have ids that begin with {prefix}; give more digits")
    return found[0]


def find_trained_run(client: MlflowClient, prefix: str) -> Run:
    """The finished run or reproduction whose id begins with `prefix`. Raises UserError."""
    run = find_run(client, prefix)
    if run.data.tags.get("kind") not in ("run", "reproduction") or run.info.status != "FINISHED":
        raise UserError(f"run {prefix} is not a finished run ({run.info.run_name}, {run.info.status})")
    return run


def _anywhere(client: MlflowClient, condition: str) -> list[Run]:
    return [run for e in client.search_experiments() for run in _search(client, e.experiment_id, condition)]


def all_parents(client: MlflowClient) -> list[Run]:
    """The parents of repeats on any data set, with finished runs or without."""
    return _anywhere(client, "tags.kind = 'repeats'")


def find_parents(client: MlflowClient, name: str) -> list[Run]:
    """The parents of repeats on any data set, by experiment name, config hash or beginning of the run id."""
    parents = all_parents(client)
    found = [run for run in parents if name in (run.data.tags["experiment"], run.data.tags["config_hash"])]
    return found or [run for run in parents if run.info.run_id.startswith(name)]


def find_sweep(client: MlflowClient, experiment_id: str, study: str) -> Run | None:
    """The parent run of a sweep, or None."""
    sweeps = _search(client, experiment_id, "tags.kind = 'sweep'")  # the name may contain a quote
    return next((run for run in sweeps if run.data.tags["study"] == study), None)


def find_parent(client: MlflowClient, experiment_id: str, config_hash: str) -> Run | None:
    """The parent run of the repeats of a config, or None."""
    condition = f"tags.kind = 'repeats' and tags.config_hash = '{config_hash}'"
    return next(_search(client, experiment_id, condition, ["attributes.start_time ASC"]), None)


def children(client: MlflowClient, parent: Run, *conditions: str) -> list[Run]:
    """The children of `parent` that fulfil conditions in MLflow's syntax, by start time."""
    condition = " and ".join([f"tags.mlflow.parentRunId = '{parent.info.run_id}'", *conditions])
    return list(_search(client, parent.info.experiment_id, condition, ["attributes.start_time ASC"]))


def trial_runs(client: MlflowClient, sweep: Run, *conditions: str) -> list[Run]:
    """The runs of all trials of a sweep that fulfil conditions in MLflow's syntax, by start time."""
    condition = " and ".join(["tags.kind = 'trial'", *conditions])
    found = _search(client, sweep.info.experiment_id, condition, ["attributes.start_time ASC"])
    return [run for run in found if run.data.tags.get("study") == sweep.data.tags["study"]]


def running_under(client: MlflowClient, parent: Run) -> list[Run]:
    """The running children of `parent`; of a sweep, the running runs of its trials."""
    running = "attributes.status = 'RUNNING'"
    sweep = parent.data.tags.get("kind") == "sweep"
    return trial_runs(client, parent, running) if sweep else children(client, parent, running)


def duplicates(client: MlflowClient, run: Run) -> list[Run]:
    """Duplicates of `run`, left when MLflow retried a create call whose answer was lost: same tags and start time."""
    found = _search(client, run.info.experiment_id, f"attributes.start_time = {run.info.start_time}")
    return [other for other in found if other.data.tags == run.data.tags and other.info.run_id != run.info.run_id]


def seed_of(run: Run) -> int:
    """The seed that a run was trained with."""
    return int(run.data.tags["seed"])


def finished_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """The finished children of `parent`, ordered by seed; if several have the same seed, the first of them."""
    by_seed: dict[int, Run] = {}
    for run in children(client, parent, "attributes.status = 'FINISHED'"):
        by_seed.setdefault(seed_of(run), run)
    return [by_seed[seed] for seed in sorted(by_seed)]


def unfinished_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """The children of `parent` that are not finished, by start time."""
    return children(client, parent, "attributes.status != 'FINISHED'")


def running_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """The runs, reproductions and trials with status RUNNING."""
    kinds = ("run", "reproduction", "trial")
    running = "attributes.status = 'RUNNING'"
    return [run for k in kinds for run in _search(client, experiment_id, f"tags.kind = '{k}' and {running}")]


def ranked_runs(client: MlflowClient, experiment_id: str, data_digest: str, split_digest: str) -> list[Run]:
    """The finished runs on these images and split, best first: highest val/acc, then lower val/loss, then older."""
    same = f"tags.data_digest = '{data_digest}' and tags.split_digest = '{split_digest}'"
    condition = f"tags.kind = 'run' and attributes.status = 'FINISHED' and {same} and metrics.`val/acc` <= 1"
    order = ["metrics.`val/acc` DESC", "metrics.`val/loss` ASC", "attributes.start_time ASC"]
    return list(_search(client, experiment_id, condition, order))


def rank(run: Run) -> tuple[float, float, int]:
    """The sort key that orders runs as ranked_runs does."""
    return -run.data.metrics["val/acc"], run.data.metrics["val/loss"], run.info.start_time


def best_of(finished: Sequence[Run]) -> Run:
    """The best of some runs by validation accuracy, or the first if there is none."""
    return min(finished, key=rank) if "val/acc" in finished[0].data.metrics else finished[0]


def runs_of_any_stage(client: MlflowClient) -> list[Run]:
    """All runs of all MLflow experiments, also deleted ones and those not made by cifar_lab."""
    experiments = pages(lambda token: client.search_experiments(ViewType.ALL, page_token=token))
    ids = [experiment.experiment_id for experiment in experiments]
    return list(pages(lambda token: client.search_runs(ids, "", ViewType.ALL, page_token=token)))


def tracked_runs(client: MlflowClient) -> list[Run]:
    """The runs of all repeats, finished or not, on any data set."""
    return _anywhere(client, "tags.kind = 'run'")


def splits(client: MlflowClient, experiment_id: str) -> list[tuple[str, str]]:
    """The data and split digests of the finished runs."""
    finished = _search(client, experiment_id, "tags.kind = 'run' and attributes.status = 'FINISHED'")
    return sorted({(run.data.tags["data_digest"], run.data.tags["split_digest"]) for run in finished})


def history(client: MlflowClient, run_id: str, metric: str) -> np.ndarray:
    """A metric's values by completed epoch, (epochs,); for a step logged twice, the later value."""
    by_step = {
        point.step: point.value
        for point in sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    }
    return np.array([by_step[step] for step in sorted(by_step)])


def training_seconds(client: MlflowClient, runs: Sequence[Run]) -> float:
    """How long the training of one of these runs took, on average; nan for no runs."""
    seconds = [history(client, run.info.run_id, "epoch_seconds").sum() for run in runs]
    return float(np.mean(seconds)) if seconds else float("nan")


def curves(client: MlflowClient, run_id: str) -> dict[str, dict[str, np.ndarray]]:
    """`curves["train"]["loss"]` and so on, each (epochs,), as CURVES has them; without what was not logged."""
    found = {
        stage: {metric: history(client, run_id, f"{stage}/{metric}") for metric in metrics}
        for stage, metrics in CURVES.items()
    }
    logged = {stage: {name: values for name, values in each.items() if len(values)} for stage, each in found.items()}
    return {stage: metrics for stage, metrics in logged.items() if metrics}
