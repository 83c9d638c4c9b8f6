"""Jobs in worker processes: submitted, waited for, resubmitted if a worker dies."""

import logging
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

from mlflow.entities import Run
from rich.console import Console

from cifar_lab.execution.cluster import Cluster
from cifar_lab.execution.local import Pool, Submit
from cifar_lab.execution.worker import train_one

POLL_SECONDS = 1.0
DEATHS = 3  # give up if so many workers die in a row and no job ends


@dataclass(frozen=True, eq=False)
class Job:
    """A run to train: its name, and the arguments of train_one."""

    name: str
    arguments: tuple[object, ...]


class Jobs(Protocol):
    """A queue of jobs that is notified of their results."""

    def left(self) -> int:
        """The number of jobs that have not ended."""

    def next(self, running: Collection[Job]) -> Job | None:
        """A job to submit now; None if there is none, or if it has to wait for one of those running."""

    def done(self, job: Job, run: Run) -> None: ...

    def failed(self, job: Job, reason: str) -> None: ...


def run_jobs(
    jobs: Jobs,
    workers: Pool | Cluster,
    resources: tuple[int, int, int],
    console: Console,
    show: Callable[[], None],
    recover: Callable[[], None],
) -> None:
    """Run jobs until none is left, or until workers have died DEATHS times in a row.

    A failed job does not stop the others. If a worker dies, `recover` is called and new workers continue. Runs that
    another process trains are waited for. `show` is called about every POLL_SECONDS. resources: see Pool.at_once.
    """
    deaths = 0
    while (before := jobs.left()) and deaths < DEATHS:
        try:
            with workers.open(*resources) as submit:
                _run(jobs, submit, console, show)
        except BrokenProcessPool:
            console.print("a worker process died; its runs continue in new ones", soft_wrap=True)
            recover()
            deaths = deaths + 1 if jobs.left() == before else 1


def _run(jobs: Jobs, submit: Submit, console: Console, show: Callable[[], None]) -> None:
    """Raises BrokenProcessPool if a worker dies: running jobs have to be submitted again."""
    running: dict[Future, Job] = {}
    elsewhere: set[Job] = set()
    while True:
        while job := jobs.next(running.values()):
            running[submit(train_one, *job.arguments)] = job
        if not running:
            return
        for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
            job, error = running.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            if error:
                logging.getLogger("cifar_lab").debug("%s", job.name, exc_info=error)
                console.print(f"{job.name} failed: {error}", soft_wrap=True)
                jobs.failed(job, str(error))
            elif run := future.result():
                jobs.done(job, run)
            elif job not in elsewhere:
                console.print(f"{job.name} is being trained by another process", soft_wrap=True)
                elsewhere.add(job)
        show()
