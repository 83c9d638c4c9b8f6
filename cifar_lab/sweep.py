"""A search for better settings: Optuna's trials as tracked runs under one parent, killed and continued without loss.

Trials are chosen by the validation accuracy of seed 0; the test set is never scored. The best one becomes an experiment
file, to be confirmed with other seeds: the score of the best of many is no result.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
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

from cifar_lab import store, tracking, ui
from cifar_lab.config import EXPERIMENTS, Config, UsageError, UserError
from cifar_lab.datamodule import epoch_costs
from cifar_lab.datasets import Dataset, select
from cifar_lab.pool import Pool, Submit
from cifar_lab.progress import Progress
from cifar_lab.provenance import run_tags
from cifar_lab.repeat import DEATHS, POLL_SECONDS, end_dead_runs
from cifar_lab.sources import staged
from cifar_lab.space import Range, Space
from cifar_lab.train import resolve_config
from cifar_lab.trial import open_study, train_trial

SHOWN = 5  # trials
SEEDS = "1,2,3,4,5,6,7,8"  # to confirm with: not the one that was chosen by


def run_sweep(
    space: Space, trials: int, dataset: Dataset, stand_in_because: str, accelerator: str, jobs: int | None
) -> int:
    """Search until `trials` trials are over; returns 0, 1 if none was completed, 130 if interrupted."""
    console = Console(highlight=False, markup=False)
    if stand_in_because:
        console.print(f"NOT CIFAR-10. {stand_in_because}. A stand-in is used instead.", soft_wrap=True)
    pool = Pool(accelerator, jobs)
    base = space.config({})
    dataset = select(dataset, base.data)
    base = resolve_config(base, dataset, pool.precision)
    if not base.data.val_size:
        raise UsageError("data.val_size = 0 leaves no images to choose by, and a sweep chooses")
    tags = run_tags(space.name, base, dataset, pool.tags)
    client, name = store.connect(make=True), space.study_name(tags["config_hash"])
    try:
        alone = store.claim_study(name).acquire(timeout=0)
    except Timeout:
        raise UserError(f"the sweep {name} is running in another process") from None
    with alone:
        with store.planning():
            experiment_id = store.open_experiment(client, dataset.name)
            ui.save_views(client, experiment_id)
            study = open_study(name)
            parent = tracking.open_sweep(client, experiment_id, {**tags, "study": name}, base, dataset, space.ranges)
        end_dead_runs(client, experiment_id, tags)
        console.print(f"{name} on {dataset.title}: {space}; {max(0, trials - _over(study))} of {trials} trials to go")
        search = _Search(client, study, space, base, dataset, tags, parent, pool, console)
        try:
            search.run(trials)
        except KeyboardInterrupt:
            tracking.mark(client, parent.info.run_id, "KILLED")
            console.print(f"interrupted with {_over(study)} trials over; the same command continues where it stopped")
            return 130
        return _conclude(client, study, space, parent, console)


def _over(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


class _Search:
    """The trials of a study in a pool of worker processes."""

    def __init__(
        self,
        client: MlflowClient,
        study: optuna.Study,
        space: Space,
        base: Config,
        dataset: Dataset,
        tags: Mapping[str, str],
        parent: Run,
        pool: Pool,
        console: Console,
    ) -> None:
        self.client, self.study, self.space, self.base, self.dataset = client, study, space, base, dataset
        self.tags, self.parent, self.pool, self.console = tags, parent, pool, console
        self.ranges = {key: _distribution(found) for key, found in space.ranges.items()}
        # of a study that goes on, not the samples that it began with
        self.study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))

    def run(self, trials: int) -> None:
        """Go on until `trials` trials are over. The trial of a worker that dies goes on in a new one."""
        trainer = self.base.trainer
        deaths, needs = 0, (trainer.devices, trainer.threads, trials - _over(self.study))
        jobs = self.pool.at_once(*needs)
        with Progress(self.client, self.console, {self.parent: epoch_costs(self.base)}, jobs) as progress:

            def show() -> None:
                with suppress(MlflowException):  # the display is not worth a trial
                    left = Counter({self.parent.info.run_name: trials - _over(self.study)})
                    progress.update(left, trials)

            while (before := _over(self.study)) < trials and deaths < DEATHS:
                tracking.mark(self.client, self.parent.info.run_id, "RUNNING")
                try:
                    with self.pool.open(*needs) as submit:
                        self._train_in_workers(trials, jobs, submit, show)
                except BrokenProcessPool:
                    self.console.print("a worker process died; its trial goes on in a new one")
                    end_dead_runs(self.client, self.parent.info.experiment_id, self.tags)
                    deaths = deaths + 1 if _over(self.study) == before else 1

    def _train_in_workers(self, trials: int, jobs: int, submit: Submit, show: Callable[[], None]) -> None:
        unfinished = [trial for trial in self.study.trials if not trial.state.is_finished()]
        pending: dict[Future, FrozenTrial] = {}
        while True:
            while len(pending) < jobs and (unfinished or len(self.study.trials) < trials):
                trial = unfinished.pop(0) if unfinished else self._ask()
                pending[submit(train_trial, *self._call(trial))] = trial
            if not pending:
                return
            for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
                self._tell(pending.pop(future), future)
            show()

    def _ask(self) -> FrozenTrial:
        number = self.study.ask(self.ranges).number
        return self.study.trials[number]

    def _call(self, trial: FrozenTrial) -> tuple[object, ...]:
        config = resolve_config(self.space.config(settings_of(trial)), self.dataset, self.pool.precision)
        tags = run_tags(self.space.name, config, self.dataset, self.pool.tags)
        tags |= {"kind": "trial", "trial": str(trial.number), "seed": "0", "study": self.study.study_name}
        return self.parent, config, tags, self.dataset.folder

    def _tell(self, trial: FrozenTrial, future: Future) -> None:
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            raise error
        if error:
            logging.getLogger("cifar_lab").debug("trial %s", trial.number, exc_info=error)
            self.console.print(f"trial {trial.number} failed: {error}", soft_wrap=True)
            self.study.tell(trial.number, state=TrialState.FAIL)
            return
        value, pruned = future.result()
        self.study.tell(trial.number, *((None, TrialState.PRUNED) if pruned else (value, TrialState.COMPLETE)))


def _distribution(found: Range) -> BaseDistribution:
    kind = IntDistribution if isinstance(found.low, int) else FloatDistribution
    return kind(found.low, found.high, log=found.log)


def settings_of(trial: FrozenTrial) -> dict[str, float]:
    """The settings of a trial, to four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in trial.params.items()}


def _conclude(client: MlflowClient, study: optuna.Study, space: Space, parent: Run, console: Console) -> int:
    """Say what became of all trials, and write the best one as an experiment file."""
    states = Counter(trial.state.name.lower() for trial in study.trials)
    complete = sorted((t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda trial: -trial.value)
    table = Table("trial", *space.ranges, "val/acc of seed 0")
    for trial in complete[:SHOWN]:
        table.add_row(str(trial.number), *map(str, settings_of(trial).values()), f"{trial.value:.2%}")
    console.print(table)
    console.print(
        f"{len(study.trials)} trials: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}"
    )
    tracking.mark(client, parent.info.run_id, "FINISHED" if complete else "FAILED")
    if not complete:
        console.print("no trial was completed, so there is no best one")
        return 1
    best, file = complete[0], EXPERIMENTS / f"{study.study_name}.toml"
    confirm = f'make experiment compare EXPERIMENTS="{space.name} {study.study_name}" SEEDS={SEEDS}'
    with staged(file) as path:
        path.write_text(
            f"# {space.name} with the settings of trial {best.number} of {len(study.trials)}, the one with the highest"
            f" val/acc of seed 0.\n# Searched: {space}. To be confirmed with other seeds:\n#   {confirm}\n"
            f"{space.config(settings_of(best)).toml(changes_only=True)}"
        )
    console.print(f"the best trial is now {file}. It is the best of many, so confirm it with other seeds:")
    console.print(confirm, soft_wrap=True)
    return 0
