"""Worker processes on this machine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from cifar_lab.execution.worker import start_worker
from cifar_lab.processes import PRELOAD, fork_server, without_main
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.hardware import check_devices, fast_precision, resolve_accelerator

STOP_SECONDS = 30.0
Submit = Callable[..., Future]


class Pool:
    """This machine: trains `jobs` runs at a time, by default one per GPU, or as many as the cores allow.

    `accelerator`, `tags` (see machine_tags) and `precision` (see fast_precision) are those of the runs.
    """

    def __init__(self, accelerator: str, jobs: int | None) -> None:
        self.accelerator, self.jobs = resolve_accelerator(accelerator), jobs
        self.tags, self.precision = machine_tags(self.accelerator), fast_precision(self.accelerator)

    def at_once(self, devices: int, threads: int, count: int) -> int:
        """How many of `count` runs are trained at a time, if each takes `devices` devices with `threads` threads each.

        Raises UsageError if this machine has fewer devices.
        """
        check_devices(self.accelerator, devices)
        jobs = self.jobs
        if jobs is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            places = {"cpu": cores // threads, "cuda": torch.cuda.device_count(), "mps": 1}[self.accelerator]
            jobs = places // devices
        return max(1, min(jobs, count))

    @contextmanager
    def open(self, *resources: int) -> Iterator[Submit]:
        """A function that submits a call to a worker process. An error stops all workers. resources: see at_once."""
        # the fork server has done all imports, so workers start at once; Metal does not work after a fork
        context = multiprocessing.get_context("spawn") if self.accelerator == "mps" else fork_server(PRELOAD)
        jobs = self.at_once(*resources)
        settings = [self._settings(worker, devices=resources[0]) for worker in range(jobs)]
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(jobs, context, start_worker, (settings, context.Value("i", 0))) as pool:

            def submit(call: Callable, *arguments: Any) -> Future:
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: the driver handles Ctrl-C
                try:
                    with without_main():
                        return pool.submit(call, *arguments)
                except (OSError, EOFError) as error:  # the fork server died
                    raise BrokenProcessPool("no worker process could be started") from error
                finally:
                    signal.signal(signal.SIGINT, handler)

            try:
                yield submit
            except BaseException:
                _stop(pool, others)
                raise

    def _settings(self, worker: int, devices: int) -> dict[str, str]:
        """Environment variables of a worker: MLflow's settings as in this process, and the worker's own GPUs."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        if self.accelerator == "cuda":
            count = torch.cuda.device_count()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [*map(str, range(count))]
            settings["CUDA_VISIBLE_DEVICES"] = ",".join(names[(worker * devices + k) % count] for k in range(devices))
        return settings


def _stop(pool: Executor, others: Collection[BaseProcess]) -> None:
    """others: child processes that are not the pool's."""
    pool.shutdown(wait=False, cancel_futures=True)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()
