"""The main job, from checked arguments to the last printed line: plan, train, summarise, name the best run."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from cifar_lab.analysis.comparison import summarise
from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import select
from cifar_lab.data.sources import not_cifar10
from cifar_lab.execution.cluster import Cluster
from cifar_lab.execution.jobs import Job, run_jobs
from cifar_lab.execution.local import Pool
from cifar_lab.execution.progress import Progress, clock
from cifar_lab.execution.repeats import Repeats, plan, summarise_repeats
from cifar_lab.networks.build import check_network
from cifar_lab.terminal import make_console
from cifar_lab.tracking import lifecycle, locks, promotion, queries, registry, store
from cifar_lab.tracking.recovery import end_dead_runs
from cifar_lab.training.batches import epoch_costs
from cifar_lab.training.train import resolve_config

DIED = "its worker process died repeatedly (out of memory?); to continue it, start again with fewer --jobs"
Result = tuple[Repeats, list[Run]]  # with the finished runs


def results_table(client: MlflowClient, results: Sequence[Result]) -> Table:
    """A row per experiment: accuracies, mean ± std over its finished runs, and their time."""
    shown = ["val/acc", "test/acc"]
    if any(item.config.trainer.tta for item, _ in results):
        shown.append("test/acc_tta")
    names = [f"{metric.replace('/', ' ').replace('_', ' ')}, mean ± std" for metric in shown]
    table = Table("experiment", "n", *names, "time per run")
    for item, finished in results:
        accuracies = [
            str(summarise(values)) if (values := [r.data.metrics[m] for r in finished if m in r.data.metrics]) else "-"
            for m in shown
        ]
        seconds = queries.training_seconds(client, finished)
        table.add_row(item.name, str(len(finished)), *accuracies, clock(seconds))
    return table


def run_experiments(
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    dataset: Dataset,
    fallback_reason: str,
    workers: Pool | Cluster,
    table: Callable[[MlflowClient, Sequence[Result]], Table] = results_table,
) -> tuple[int, list[Repeats]]:
    """Train the missing runs of `configs` with `seeds`, and print a `table` of the results. Raises UserError.

    Returns 0, 1 if a run failed, 130 if interrupted; and the plan.
    """
    console = make_console(highlight=False, markup=False)
    configs, datasets = _resolved(configs, dataset, workers.precision)
    announcement = _announcement(datasets.values(), fallback_reason)
    console.print(announcement)
    client = store.connect(make=True)
    with locks.store_lock():
        planned = plan(client, configs, seeds, datasets, workers.tags)
    for item in planned:
        _print_plan(console, item, workers.accelerator)
    jobs = _MissingRuns(planned)
    interrupted = not _train(client, jobs, workers, console)
    if interrupted:
        with contextlib.suppress(MlflowException), store.short_timeouts():
            console.print(table(client, _summarise(client, planned, interrupted)))
    else:
        console.print(table(client, _summarise(client, planned, interrupted)))
        for items in _by_dataset(planned).values():
            for line in _promote(client, items):
                console.print(line, soft_wrap=True)
        console.print("compare: make ui")
    if fallback_reason:
        console.print(announcement)
    for name, reason in jobs.reasons.items():
        console.print(f"{name} failed: {reason}", soft_wrap=True)
    if interrupted:
        console.print("interrupted; the same command continues where it stopped")
    return 130 if interrupted else 1 if jobs.reasons else 0, planned


def _resolved(
    configs: Mapping[str, Config], dataset: Dataset, precision: str
) -> tuple[dict[str, Config], dict[str, Dataset]]:
    """The configs without open settings, and their images. Raises UsageError, also for a network with an error."""
    datasets = {name: select(dataset, config.data) for name, config in configs.items()}
    resolved = {name: resolve_config(config, datasets[name], precision) for name, config in configs.items()}
    for name, config in resolved.items():
        check_network(config, datasets[name])
    return resolved, datasets


def _announcement(datasets: Iterable[Dataset], fallback_reason: str) -> Panel:
    lines = []
    for dataset in datasets:
        counts = f"{len(dataset.labels['train']):,} training and {len(dataset.labels['test']):,} test images"
        lines += [f"{dataset.title}: {counts}, MLflow experiment {dataset.name!r}", *filter(None, [dataset.note])]
    text = "\n".join(dict.fromkeys(lines))
    if not fallback_reason:
        return Panel(text)
    return Panel(f"{not_cifar10(fallback_reason)}\n{text}", style="bold yellow")


def _print_plan(console: Console, item: Repeats, accelerator: str) -> None:
    continued = f", {len(item.continuing)} of them continued" if item.continuing else ""
    console.print(f"{item.name}: {len(item.missing)} of {len(item.seeds)} runs to train on {accelerator}{continued}")
    for name in item.damaged:
        console.print(f"  the checkpoint of {name} is damaged, so it starts over")
    if differences := ", ".join(item.differences):
        console.print(
            f"  changed since earlier runs: {differences}. Finished ones are kept, unfinished ones start over"
        )


class _MissingRuns:
    """The missing runs of some repeats as jobs; `reasons` has the reason of each failure by the run's name."""

    def __init__(self, planned: Sequence[Repeats]) -> None:
        self.repeats = [item for item in planned if item.missing]
        self.jobs = {_job(item, seed): item for item in planned for seed in item.missing}
        self.total, self.reasons = len(self.jobs), dict[str, str]()

    def left(self) -> int:
        return len(self.jobs)

    def next(self, running: Collection[Job]) -> Job | None:
        return next((job for job in self.jobs if job not in running), None)

    def done(self, job: Job, run: Run) -> None:
        del self.jobs[job]

    def failed(self, job: Job, reason: str) -> None:
        del self.jobs[job]
        self.reasons[job.name] = reason


def _job(item: Repeats, seed: int) -> Job:
    tags = {**item.tags, "kind": "run", "seed": str(seed)}
    return Job(f"{item.name}-seed{seed}", (item.parent, item.config, tags, item.dataset.folder))


def _train(client: MlflowClient, jobs: _MissingRuns, workers: Pool | Cluster, console: Console) -> bool:
    """Train all missing runs; False if interrupted, after marking the running ones as KILLED."""
    if not jobs.left():
        return True
    trainers = [item.config.trainer for item in jobs.repeats]
    resources = max(t.devices for t in trainers), max(t.threads for t in trainers), jobs.left()
    costs = {item.parent: epoch_costs(item.config) for item in jobs.repeats}
    with Progress(client, console, costs, workers.at_once(*resources)) as progress:

        def show() -> None:
            with contextlib.suppress(MlflowException):  # a display is not worth failing for
                progress.update(Counter(item.parent.info.run_id for item in jobs.jobs.values()), jobs.total)

        def recover() -> None:
            with contextlib.suppress(MlflowException):  # the next start does it again
                for item in jobs.repeats:
                    end_dead_runs(client, item.parent.info.experiment_id, item.tags)

        try:
            for item in jobs.repeats:
                lifecycle.mark(client, item.parent.info.run_id, "RUNNING")
            run_jobs(jobs, workers, resources, console, show, recover)
        except KeyboardInterrupt:
            with store.short_timeouts():
                recover()
            return False
    for job in [*jobs.jobs]:
        jobs.failed(job, DIED)
    return True


def _summarise(client: MlflowClient, planned: Sequence[Repeats], interrupted: bool) -> list[Result]:
    results = []
    for item in planned:
        with locks.store_lock():  # another command may be summarising the same runs
            results.append((item, summarise_repeats(client, item, interrupted)))
    return results


def _by_dataset(planned: Sequence[Repeats]) -> dict[str, list[Repeats]]:
    found: dict[str, list[Repeats]] = {}
    for item in planned:
        found.setdefault(item.dataset.name, []).append(item)
    return found


def _promote(client: MlflowClient, items: Sequence[Repeats]) -> list[str]:
    """Make the best run on the data set of these repeats its champion; returns the lines to print about it."""
    dataset, experiment_id = items[0].dataset, items[0].parent.info.experiment_id
    validated = [item for item in items if item.config.data.val_size]
    if not validated:
        return ["no images are held out (data.val_size = 0), so there is nothing to choose a best run by"]
    item = next((item for item in validated if item.config.data.splits == "fixed"), None)
    if item is None:
        return ["each seed has validation images of its own, so there is nothing to choose a best run by"]
    ranking = queries.ranked_runs(client, experiment_id, item.tags["data_digest"], item.tags["split_digest"])
    if not ranking:
        return ["no run has finished, so there is no best run"]
    best = ranking[0]
    with locks.store_lock():
        reason = promotion.promote(client, best, dataset)
    val, test = (f"{stage} acc {best.data.metrics[f'{stage}/acc']:.2%}" for stage in ("val", "test"))
    line = f"best run: {best.info.run_name}, highest val acc of all on these images: {val}, {test}"
    if reason:
        return [line, f"it is not the champion of {dataset.name}: {reason}"]
    model = f"models:/{registry.model_name(client, dataset.name)}@{registry.ALIAS}"
    return [line, f'use it: make predict MODEL={model} IMAGES="photos/*.jpg", or make serve MODEL={model}']
