"""The trials of a sweep, queued as runs: each trial is one run per seed, and is judged by their mean val/acc."""

from collections import defaultdict
from collections.abc import Collection

import numpy as np
import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.errors import UsageError
from cifar_lab.execution.jobs import Job
from cifar_lab.execution.local import Pool
from cifar_lab.execution.repeats import log_statistics
from cifar_lab.execution.space import Range, Space
from cifar_lab.tracking import lifecycle
from cifar_lab.tracking.provenance import run_tags
from cifar_lab.training.train import resolve_config

STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}


class Trials:
    """The runs of a study's trials as jobs: those of unfinished trials first, then those of new ones.

    With several seeds, a trial has a parent run of its own under that of the sweep. It ends early if one of its runs
    fails or is pruned: those that have not started are left out, those that run stop after their epoch (see Prune).
    """

    def __init__(
        self,
        client: MlflowClient,
        study: optuna.Study,
        space: Space,
        base: Config,
        dataset: Dataset,
        sweep: Run,
        pool: Pool,
        trials: int,
        console: Console,
    ) -> None:
        self.client, self.study, self.space, self.base, self.dataset = client, study, space, base, dataset
        self.sweep, self.pool, self.trials, self.console = sweep, pool, trials, console
        self.ranges = {key: _distribution(found) for key, found in space.ranges.items()}
        # the seed lets a continued study draw new samples; constant_liar counts running trials as bad ones
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), constant_liar=True)
        self.parents: dict[int, Run] = {}  # of the runs of unfinished trials, by trial
        self.finished: dict[int, dict[int, Run]] = defaultdict(dict)  # runs of unfinished trials, by trial and seed
        self.resources = (base.trainer.devices, base.trainer.threads, self.runs_left())
        self.at_once = pool.at_once(*self.resources)
        self.jobs: dict[Job, tuple[int, int]] = {}  # trial and seed

    def ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def left(self) -> int:
        return max(0, self.trials - self.ended())

    def runs_left(self) -> int:
        return self.left() * len(self.space.seeds) - sum(map(len, self.finished.values()))

    def next(self, running: Collection[Job]) -> Job | None:
        if len(running) >= self.at_once:
            return None
        now = {self.jobs[job] for job in running}
        while found := self._next(now):
            try:
                return self._job(*found)
            except UsageError as error:  # valid at both ends of each range, but not here
                number = found[0].number
                self.console.print(f"trial {number} failed: {error}", soft_wrap=True)
                self.study.tell(number, state=TrialState.FAIL)
        return None

    def _next(self, running: Collection[tuple[int, int]]) -> tuple[FrozenTrial, int] | None:
        """Trial and seed of the next run, from trials and seeds of those running."""
        trials = self.study.trials
        for trial in trials:
            if not trial.state.is_finished():
                for seed in self.space.seeds:
                    if (trial.number, seed) not in running and seed not in self.finished[trial.number]:
                        return trial, seed
        if len(trials) >= self.trials:
            return None
        number = self.study.ask(self.ranges).number
        return self.study.trials[number], self.space.seeds[0]

    def _job(self, trial: FrozenTrial, seed: int) -> Job:
        config = resolve_config(self.space.config(settings_of(trial)), self.dataset, self.pool.precision)
        seeds = self.space.seeds
        tags = run_tags(self.space.name, config, self.dataset, self.pool.tags)
        tags |= {"trial": str(trial.number), "seeds": ",".join(map(str, seeds)), "study": self.study.study_name}
        if trial.number not in self.parents:
            opened = lifecycle.open_trial(self.client, self.sweep, config, self.dataset, tags) if seeds[1:] else None
            self.parents[trial.number] = opened or self.sweep
        tags |= {"kind": "trial", "seed": str(seed)}
        name = f"trial {trial.number}{f', seed {seed}' if seeds[1:] else ''}"
        job = Job(name, (self.parents[trial.number], config, tags, self.dataset.folder))
        self.jobs[job] = trial.number, seed
        return job

    def done(self, job: Job, run: Run) -> None:
        number, seed = self.jobs[job]
        if number not in self.parents:  # the trial has ended
            return
        runs = self.finished[number]
        if "pruned" in run.data.tags:
            self._end(number, TrialState.PRUNED)
            return
        runs[seed] = run
        if len(runs) == len(self.space.seeds):
            self._end(number, TrialState.COMPLETE)

    def failed(self, job: Job, reason: str) -> None:
        number, _ = self.jobs[job]
        if number in self.parents:
            self._end(number, TrialState.FAIL)

    def interrupt(self) -> None:
        """Mark the parents of the unfinished trials and that of the sweep as KILLED."""
        for parent in {run.info.run_id for run in [*self.parents.values(), self.sweep]}:
            lifecycle.mark(self.client, parent, "KILLED")

    def _end(self, number: int, state: TrialState) -> None:
        """Record the trial's end in MLflow, then in Optuna: a command that is killed between them does both again."""
        parent = self.parents.pop(number)
        finished, runs = self.finished.pop(number, {}), []
        mean: float | None = None
        if state == TrialState.COMPLETE:
            runs = [finished[seed] for seed in sorted(finished)]
            mean = float(np.mean([run.data.metrics["val/acc"] for run in runs]))
        if parent is not self.sweep:
            if runs:
                log_statistics(self.client, parent, runs)
            elif state == TrialState.PRUNED:
                lifecycle.tag_pruned(self.client, parent.info.run_id)
            lifecycle.mark(self.client, parent.info.run_id, STATUS[state])
        self.study.tell(number, mean, state)


def _distribution(found: Range) -> BaseDistribution:
    if isinstance(found.low, int) and isinstance(found.high, int):
        return IntDistribution(found.low, found.high, log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def settings_of(trial: FrozenTrial) -> dict[str, float]:
    """The settings of a trial, rounded to four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in trial.params.items()}
