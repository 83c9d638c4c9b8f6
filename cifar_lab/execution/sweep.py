"""Sweeps: Optuna's trials as tracked runs under one parent; a killed sweep continues without loss.

Trials are judged by the validation accuracy of seed 0; the test set is never scored. The best one becomes an experiment
file, to be confirmed with other seeds: the best score of many trials is too optimistic.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress

import optuna
from filelock import Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import select
from cifar_lab.data.sources import not_cifar10
from cifar_lab.errors import UsageError, UserError
from cifar_lab.execution.jobs import Job, run_jobs
from cifar_lab.execution.local import Pool
from cifar_lab.execution.progress import Progress
from cifar_lab.execution.space import Range, Space
from cifar_lab.execution.trial import open_study
from cifar_lab.experiment_files import EXPERIMENTS
from cifar_lab.files import atomic_write
from cifar_lab.networks.build import check_network
from cifar_lab.tracking import lifecycle, locks, queries, recovery, store, views
from cifar_lab.tracking.provenance import run_tags
from cifar_lab.tracking.recovery import end_dead_runs
from cifar_lab.training.batches import epoch_costs
from cifar_lab.training.train import resolve_config

SHOWN = 5  # trials
SEEDS = "1,2,3,4,5,6,7,8"  # for the confirmation; seed 0 was used to choose


def run_sweep(space: Space, trials: int, dataset: Dataset, fallback_reason: str, pool: Pool) -> int:
    """Search until `trials` trials have ended; returns 0, 1 if none was completed, 130 if interrupted."""
    console = Console(highlight=False, markup=False)
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
        for run in queries.unfinished_runs(client, parent):
            if recovery.is_damaged(run):
                console.print(f"the checkpoint of {run.info.run_name} is damaged, so it starts over")
        search = _Trials(study, space, base, dataset, parent, pool, trials)
        console.print(f"{name} on {dataset.title}: {space}; {search.left()} of {trials} trials to go")
        lifecycle.mark(client, parent.info.run_id, "RUNNING")
        try:
            _run(client, search, tags, console)
        except KeyboardInterrupt:
            lifecycle.mark(client, parent.info.run_id, "KILLED")
            console.print(f"interrupted after {search.ended()} trials; the same command continues where it stopped")
            return 130
        return _conclude(client, study, space, parent, dataset.variables, console)


class _Trials:
    """The trials of a study as jobs: unfinished ones first, then new ones."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        base: Config,
        dataset: Dataset,
        parent: Run,
        pool: Pool,
        trials: int,
    ) -> None:
        self.study, self.space, self.base, self.dataset = study, space, base, dataset
        self.parent, self.pool, self.trials = parent, pool, trials
        self.ranges = {key: _distribution(found) for key, found in space.ranges.items()}
        # the seed lets a continued study draw new samples; constant_liar counts running trials as bad ones
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), constant_liar=True)
        self.resources = (base.trainer.devices, base.trainer.threads, self.left())
        self.at_once = pool.at_once(*self.resources)
        self.numbers: dict[Job, int] = {}

    def ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def left(self) -> int:
        return max(0, self.trials - self.ended())

    def next(self, running: Collection[Job]) -> Job | None:
        if len(running) >= self.at_once:
            return None
        trials, now = self.study.trials, {self.numbers[job] for job in running}
        for trial in trials:
            if not trial.state.is_finished() and trial.number not in now:
                return self._job(trial)
        if len(trials) >= self.trials:
            return None
        number = self.study.ask(self.ranges).number
        return self._job(self.study.trials[number])

    def _job(self, trial: FrozenTrial) -> Job:
        config = resolve_config(self.space.config(settings_of(trial)), self.dataset, self.pool.precision)
        tags = run_tags(self.space.name, config, self.dataset, self.pool.tags)
        tags |= {"kind": "trial", "trial": str(trial.number), "seed": "0", "study": self.study.study_name}
        job = Job(f"trial {trial.number}", (self.parent, config, tags, self.dataset.folder))
        self.numbers[job] = trial.number
        return job

    def done(self, job: Job, run: Run) -> None:
        if "pruned" in run.data.tags:
            self.study.tell(self.numbers[job], state=TrialState.PRUNED)
        else:
            self.study.tell(self.numbers[job], run.data.metrics["val/acc"])

    def failed(self, job: Job, reason: str) -> None:
        self.study.tell(self.numbers[job], state=TrialState.FAIL)


def _run(client: MlflowClient, search: _Trials, tags: Mapping[str, str], console: Console) -> None:
    parent = search.parent
    with Progress(client, console, {parent: epoch_costs(search.base)}, search.at_once) as progress:

        def show() -> None:
            with suppress(MlflowException):  # a display is not worth failing for
                progress.update(Counter({parent.info.run_id: search.left()}), search.trials)

        def recover() -> None:
            end_dead_runs(client, parent.info.experiment_id, tags)

        run_jobs(search, search.pool, search.resources, console, show, recover)


def _distribution(found: Range) -> BaseDistribution:
    if isinstance(found.low, int) and isinstance(found.high, int):
        return IntDistribution(found.low, found.high, log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def settings_of(trial: FrozenTrial) -> dict[str, float]:
    """The settings of a trial, rounded to four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in trial.params.items()}


def _conclude(
    client: MlflowClient, study: optuna.Study, space: Space, parent: Run, variables: str, console: Console
) -> int:
    """Print the trials by outcome, and write the best one as an experiment file; returns 1 if there is none."""
    states = Counter(trial.state.name.lower() for trial in study.trials)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    table = Table("trial", *space.ranges, "val/acc of seed 0")
    for trial in complete[:SHOWN]:
        table.add_row(str(trial.number), *map(str, settings_of(trial).values()), f"{trial.value:.2%}")
    console.print(table)
    console.print(
        f"{len(study.trials)} trials: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}"
    )
    lifecycle.mark(client, parent.info.run_id, "FINISHED" if complete else "FAILED")
    if not complete:
        console.print("no trial was completed, so there is no best trial")
        return 1
    best, file = complete[0], EXPERIMENTS / f"{study.study_name}.toml"
    confirm = f'make experiment compare EXPERIMENTS="{space.name} {study.study_name}" SEEDS={SEEDS}{variables}'
    with atomic_write(file) as path:
        path.write_text(
            f"# {space.name} with the settings of trial {best.number} of {len(study.trials)}, which has the highest"
            f" val/acc with seed 0.\n# Searched: {space}. To be confirmed with other seeds:\n#   {confirm}\n"
            f"{space.config(settings_of(best)).toml(changes_only=True)}"
        )
    console.print(f"best trial written to {file}. Its score is the best of many: confirm it with other seeds:")
    console.print(confirm, soft_wrap=True)
    return 0
