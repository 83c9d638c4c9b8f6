"""Worker processes for many runs, stopped together with what they run."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager

from cifar_lab.worker import start_worker

STOP_SECONDS = 15.0


@contextmanager
def open_pool(jobs: int, accelerator: str) -> Iterator[Callable[..., Future]]:
    """Gives the function that submits a call to one of `jobs` worker processes; an exception ends them all."""
    # a fork server's workers start at once, but CUDA does not survive a fork
    context = multiprocessing.get_context("forkserver" if accelerator == "cpu" else "spawn")
    settings = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    with ProcessPoolExecutor(jobs, context, start_worker, (settings,)) as pool:

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


def choose_jobs(jobs: int | None, threads: int, accelerator: str, count: int) -> int:
    """How many of `count` runs at once: `jobs`, or as many as the cores hold at `threads` each; one on a GPU."""
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = max(1, cores // threads) if accelerator == "cpu" else 1
    return max(1, min(jobs, count))


def _stop(pool: Executor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()
