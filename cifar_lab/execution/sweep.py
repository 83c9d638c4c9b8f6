"""Sweeps: Optuna's trials as tracked runs under one parent; a killed sweep continues without loss.

Trials are judged by validation accuracy, all with the same seeds; the test set is never scored. The best one becomes an
experiment file, to be confirmed with other seeds: the best score of many trials is too optimistic.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import optuna
from filelock import Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from cifar_lab.analysis.comparison import summarise
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import select
from cifar_lab.data.sources import not_cifar10
from cifar_lab.errors import UsageError, UserError
from cifar_lab.execution.jobs import run_jobs
from cifar_lab.execution.local import Pool
from cifar_lab.execution.progress import Progress
from cifar_lab.execution.search import Trials, settings_of
from cifar_lab.execution.space import Space
from cifar_lab.execution.trial import open_study
from cifar_lab.experiment_files import EXPERIMENTS
from cifar_lab.files import atomic_write
from cifar_lab.networks.build import check_network
from cifar_lab.terminal import make_console
from cifar_lab.tracking import lifecycle, locks, places, queries, recovery, store, views
from cifar_lab.tracking.provenance import run_tags
from cifar_lab.tracking.recovery import end_dead_runs
from cifar_lab.training.batches import epoch_costs
from cifar_lab.training.train import resolve_config

DIED = "their worker processes died repeatedly (out of memory?); to continue, start again with fewer --jobs"
SHOWN = 5  # trials
CONFIRMATIONS = 8  # seeds; other ones than those that were used to choose


def run_sweep(space: Space, trials: int, dataset: Dataset, fallback_reason: str, pool: Pool) -> int:
    """Search until `trials` trials have ended; returns 0, 1 if none was completed, 130 if interrupted.

    Raises UserError, also if worker processes die repeatedly.
    """
    console = make_console(highlight=False, markup=False)
    if fallback_reason:
        console.print(not_cifar10(fallback_reason), soft_wrap=True)
    base = space.config({})
    dataset = select(dataset, base.data)
    base = resolve_config(base, dataset, pool.precision)
    if not base.data.val_size:
        raise UsageError("data.val_size = 0: a sweep needs validation images to choose by")
    check_network(base, dataset)
    tags = run_tags(space.name, base, dataset, pool.tags)
    client, name = store.connect(make=True), space.study_name(tags["config_hash"])
    try:
        alone = locks.claim_study(name).acquire(timeout=0)
    except Timeout:
        raise UserError(f"the sweep {name} is running in another process") from None
    with alone:
        with locks.store_lock():
            experiment_id = store.open_experiment(client, dataset.name)
            views.save_views(client, experiment_id)
            study = open_study(name)
            parent = lifecycle.open_sweep(client, experiment_id, {**tags, "study": name}, base, dataset, space.ranges)
        end_dead_runs(client, experiment_id, tags)
        for run in _unfinished(client, study, parent, ended=False):
            if recovery.is_damaged(run):
                console.print(f"the checkpoint of {run.info.run_name} is damaged, so it starts over")
        search = Trials(client, study, space, base, dataset, parent, pool, trials, console)
        console.print(f"{name} on {dataset.title}: {space}; {search.left()} of {trials} trials to go, {space.score}")
        lifecycle.mark(client, parent.info.run_id, "RUNNING")
        try:
            _run(client, search, tags, console)
        except KeyboardInterrupt:
            search.interrupt()
            console.print(f"interrupted after {search.ended()} trials; the same command continues where it stopped")
            return 130
        if search.left():
            search.interrupt()
            raise UserError(f"{search.left()} of {trials} trials are left: {DIED}")
        return _conclude(client, study, space, parent, dataset.variables, console)


def _run(client: MlflowClient, search: Trials, tags: Mapping[str, str], console: Console) -> None:
    parent, total = search.sweep, search.trials * len(search.space.seeds)
    with Progress(client, console, {parent: epoch_costs(search.base)}, search.at_once) as progress:

        def show() -> None:
            with suppress(MlflowException):  # a display is not worth failing for
                progress.update(Counter({parent.info.run_id: search.runs_left()}), total)

        def recover() -> None:
            end_dead_runs(client, parent.info.experiment_id, tags)

        run_jobs(search, search.pool, search.resources, console, show, recover)


def _unfinished(client: MlflowClient, study: optuna.Study, sweep: Run, ended: bool) -> list[Run]:
    """The unfinished runs of trials that have ended, or of those that go on."""
    going_on = {str(trial.number) for trial in study.trials if not trial.state.is_finished()}
    unfinished = queries.trial_runs(client, sweep, "attributes.status != 'FINISHED'")
    return [run for run in unfinished if (run.data.tags["trial"] not in going_on) == ended]


def _scores(client: MlflowClient, sweep: Run) -> dict[int, list[float]]:
    """The val/acc of each finished run, by trial."""
    scores: dict[int, list[float]] = {}
    for run in queries.trial_runs(client, sweep, "attributes.status = 'FINISHED'"):
        scores.setdefault(int(run.data.tags["trial"]), []).append(run.data.metrics["val/acc"])
    return scores


def _conclude(
    client: MlflowClient, study: optuna.Study, space: Space, parent: Run, variables: str, console: Console
) -> int:
    """Print the trials by outcome, and write the best one as an experiment file; returns 1 if there is none."""
    states = Counter(trial.state.name.lower() for trial in study.trials)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    table = Table("trial", *space.ranges, f"{space.score}{' ± std' if space.seeds[1:] else ''}")
    scores = _scores(client, parent)
    for trial in complete[:SHOWN]:
        score = scores.get(trial.number, [trial.value or 0.0])  # its runs may have been deleted
        table.add_row(str(trial.number), *map(str, settings_of(trial).values()), str(summarise(score)))
    console.print(table)
    console.print(
        f"{len(study.trials)} trials: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}"
    )
    lifecycle.mark(client, parent.info.run_id, "FINISHED" if complete else "FAILED")
    for run in _unfinished(client, study, parent, ended=True):
        shutil.rmtree(places.checkpoint_of(run.info.run_id).parent, ignore_errors=True)
    if not complete:
        console.print("no trial was completed, so there is no best trial")
        return 1
    best, file = complete[0], EXPERIMENTS / f"{study.study_name}.toml"
    others = [str(seed) for seed in range(CONFIRMATIONS + len(space.seeds)) if seed not in space.seeds][:CONFIRMATIONS]
    names = f'EXPERIMENTS="{space.reference} {study.study_name}"'
    confirm = f"make experiment compare {names} SEEDS={','.join(others)}{variables}"
    with atomic_write(file) as path:
        path.write_text(
            f"# {space.name} with the settings of trial {best.number} of {len(study.trials)}, which has the highest"
            f" {space.score}.\n# Searched: {space}. To be confirmed with other seeds:\n#   {confirm}\n"
            f"{space.config(settings_of(best)).toml(changes_only=True)}"
        )
    console.print(f"best trial written to {file}. Its score is the best of many: confirm it with other seeds:")
    console.print(confirm, soft_wrap=True)
    return 0
