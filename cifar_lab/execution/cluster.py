"""Runs on a Ray cluster: Ray places them, copies the images to each node once, and restarts runs that die."""

import logging
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

import cifar_lab
from cifar_lab.data.cache import open_dataset
from cifar_lab.errors import UsageError, UserError, first_line
from cifar_lab.execution.local import STOP_SECONDS, Submit
from cifar_lab.tracking import locks, places
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.hardware import fast_precision

CONNECT_SECONDS = 10.0
RETRIES = 5  # restarts of a run whose process or node dies


class Cluster:
    """The Ray cluster at `address`; a run takes `gpus` GPUs, and one CPU per thread and device.

    `accelerator`, `tags` and `precision` are those of one node (see Pool); each run is tagged with those of its own.
    The connection lasts as long as this process. Raises UsageError without a tracking server or Ray, UserError if the
    cluster does not answer, can't run this package, or is already in use by this folder.
    """

    def __init__(self, address: str, gpus: float) -> None:
        if places.is_local():
            raise UsageError("--cluster: set MLFLOW_TRACKING_URI to a server that all nodes reach (docs/server.md)")
        try:
            import ray
        except ModuleNotFoundError:
            raise UsageError("--cluster needs Ray, which make experiment CLUSTER=<address> installs") from None
        self.lock = locks.claim_cluster()
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError("an experiment of this folder is running on a cluster; wait for it or stop it") from None
        self.ray: Any = ray
        self.gpus, self.accelerator = gpus, "cuda" if gpus else "cpu"
        try:
            self._connect(address)
            with self.open(1, 1, 1) as submit:
                answer = submit(_describe, self.accelerator)
                try:
                    self.tags, self.precision = answer.result()
                except Exception as error:
                    raise UserError(f"the nodes of {address} can't run cifar_lab: {first_line(error)}") from None
        except UserError:
            self.lock.release()
            raise
        self.tags["cluster"] = "Ray"

    def _connect(self, address: str) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if where := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):  # Ray would retry for minutes
                socket.create_connection((where[1], int(where[2])), CONNECT_SECONDS).close()
            self.ray.init(
                address,
                runtime_env={
                    "py_modules": [str(Path(cifar_lab.__file__).parent)],
                    "env_vars": {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")},
                },
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except Exception as error:  # OSError, RuntimeError or ValueError, depending on Ray's version
            raise UserError(f"no Ray cluster at {address}: {first_line(error)}") from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray replaces it by one that exits

    def at_once(self, devices: int, threads: int, count: int) -> int:
        """How many of `count` runs fit on the nodes at a time (see Pool). Raises UserError if none does."""
        if devices > 1 and 0 < self.gpus < devices:
            raise UsageError(f"--gpus {self.gpus:g}: a run with trainer.devices = {devices} takes {devices} GPUs")
        held = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                fits = [node["Resources"].get("CPU", 0) // (devices * threads)]
                if self.gpus:
                    fits.append(node["Resources"].get("GPU", 0) // self.gpus)
                held += int(min(fits))
        if not held:
            resources = f"CPUs {devices * threads}, GPUs {self.gpus:g}"
            raise UserError(f"no node of the cluster has the resources for a run: {resources}")
        return min(held, count)

    @contextmanager
    def open(self, devices: int, threads: int, count: int) -> Iterator[Submit]:
        """A function that submits a call to a node with the resources of at_once. An error cancels all calls.

        If an argument is the folder of a data set, the call gets the data set, from the node's shared memory.
        """
        self.at_once(devices, threads, count)  # raises if no node is large enough, where Ray would wait for one
        options = {"num_cpus": devices * threads, "num_gpus": self.gpus, "max_retries": RETRIES}
        task = self.ray.remote(**options)(_call)
        datasets: dict[Path, Any] = {}
        submitted: list[Any] = []

        def submit(call: Callable, *arguments: Any) -> Future:
            for folder in arguments:
                if isinstance(folder, Path) and folder not in datasets:
                    datasets[folder] = self.ray.put(open_dataset(folder))
            sent = [datasets[a] if isinstance(a, Path) else a for a in arguments]
            submitted.append(task.remote(call, *sent))
            answer: Future = Future()

            def settle(done: Future) -> None:
                error = done.exception()
                if error is None:
                    answer.set_result(done.result())
                else:
                    answer.set_exception(getattr(error, "cause", None) or UserError(first_line(error)))

            submitted[-1].future().add_done_callback(settle)
            return answer

        try:
            yield submit
        except BaseException:
            for reference in submitted:
                self.ray.cancel(reference, force=True)
            self.ray.wait(submitted, num_returns=len(submitted), timeout=STOP_SECONDS)
            raise


def _call(call: Callable, *arguments: Any) -> Any:
    """The body of a task: `call` in a folder of this node."""
    import ray

    folder = Path(tempfile.gettempdir()) / f"cifar-lab-{ray.get_runtime_context().get_node_id()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chdir(folder)
    return call(*arguments)


def _describe(accelerator: str) -> tuple[dict[str, str], str]:
    return machine_tags(accelerator), fast_precision(accelerator)
