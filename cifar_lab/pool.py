"""Worker processes of this machine for many runs, stopped together with what they run."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager

from cifar_lab.machine import check_devices, fast_precision, resolve_accelerator
from cifar_lab.provenance import machine_tags
from cifar_lab.worker import start_worker

STOP_SECONDS = 15.0

Submit = Callable[..., Future]


class Pool:
    """This machine: `jobs` runs at once, or as many as the cores hold; on a GPU one.

    `accelerator`, `tags` (see machine_tags) and `precision` (see fast_precision) are those that runs have here.
    """

    def __init__(self, accelerator: str, jobs: int | None) -> None:
        self.accelerator, self.jobs = resolve_accelerator(accelerator), jobs
        self.tags, self.precision = machine_tags(self.accelerator), fast_precision(self.accelerator)

    def at_once(self, devices: int, threads: int, count: int) -> int:
        """How many of `count` runs are trained at once, each on so many devices with so many threads.

        Raises UsageError if the devices are not here.
        """
        check_devices(self.accelerator, devices)
        jobs = self.jobs
        if jobs is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            jobs = max(1, cores // (devices * threads)) if self.accelerator == "cpu" else 1
        return max(1, min(jobs, count))

    @contextmanager
    def open(self, *needs: int) -> Iterator[Submit]:
        """Gives the function that submits a call to a worker process, with needs as of at_once; an error ends all."""
        # a fork server's workers start at once, but CUDA does not survive a fork
        context = multiprocessing.get_context("forkserver" if self.accelerator == "cpu" else "spawn")
        settings = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        with ProcessPoolExecutor(self.at_once(*needs), context, start_worker, (settings,)) as pool:

            def submit(*call: object) -> Future:
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the driver to answer
                try:
                    return pool.submit(*call)
                finally:
                    signal.signal(signal.SIGINT, handler)

            try:
                yield submit
            except BaseException:
                _stop(pool)
                raise


def _stop(pool: Executor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()
