"""The cost of many runs: write runs that are like real ones except for their pictures, and read them back.

They go into a temporary `mlflow.db`, or to the server of MLFLOW_TRACKING_URI. Prints the numbers of docs/scaling.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

from benchmarks.table import timed
from cifar_lab.config import load_config
from cifar_lab.data.cache import Dataset, load_dataset
from cifar_lab.execution.repeats import Repeats, plan, summarise_repeats
from cifar_lab.tracking import lifecycle, places, queries, store, uploads
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.train import Result, resolve_config, train

EXPERIMENT = Path("experiments/linear.toml").resolve()
PROCESSES = 8
RATES = 0.01, 0.02  # an experiment each


class Clock(MlflowClient):
    """Notes how long each log call lasts, seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def log_batch(self, *arguments: object, **options: object) -> None:
        passed = timed()
        super().log_batch(*arguments, **options)
        self.seconds.append(passed())


def write(jobs: list[tuple[Repeats, int]], result: Result, threads: int) -> list[list[float]]:
    """Track a run for each of `jobs`, `threads` at a time, as a worker does; of each the seconds of its log calls."""
    store.connect()

    def one(job: tuple[Repeats, int]) -> list[float]:
        item, seed = job
        client, tags = Clock(), {**item.tags, "seed": str(seed)}
        noise = np.random.default_rng(seed).normal(0, 0.005)
        tags |= {"kind": "run", "mlflow.parentRunId": item.parent.info.run_id}
        run = lifecycle.create_run(client, item.parent.info.experiment_id, f"{item.name}-seed{seed}", tags)
        with lifecycle.run_lifecycle(client, run, item.config, item.dataset) as run_id:
            with uploads.EpochUploads(client, run_id, item.dataset) as upload:
                upload.report([replace(epoch, confusion=None) for epoch in result.epochs])
            scores = {name: value + noise for name, value in result.test.items()}
            client.log_batch(
                run_id, [Metric(name, value, int(1000 * time.time()), 8) for name, value in scores.items()]
            )
        return client.seconds

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, jobs))


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.scale", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=2, help="runs at once")
    options = parser.parse_args()
    dataset, _ = load_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _measure(options.runs, options.writers, dataset)


def _measure(count: int, writers: int, dataset: Dataset) -> None:
    configs = {
        f"rate{rate}": resolve_config(load_config(str(EXPERIMENT), [f"optim.learning_rate={rate}"]), dataset, "fp32")
        for rate in RATES
    }
    result = train(next(iter(configs.values())), 0, dataset, Path("last.ckpt").resolve(), "cpu")
    client, seeds = store.connect(make=True), range(count // len(RATES))
    planned = plan(client, configs, seeds, dict.fromkeys(configs, dataset), machine_tags("cpu"))
    jobs = [(item, seed) for item in planned for seed in seeds]
    processes = min(writers, PROCESSES)
    with ProcessPoolExecutor(processes) as pool:
        passed = timed()
        parts = [pool.submit(write, jobs[i::processes], result, writers // processes) for i in range(processes)]
        calls = [seconds for part in parts for run in part.result() for seconds in run]
        seconds = passed()
    print(f"{len(jobs)} runs written by {writers} at once in {seconds:.0f} s, {len(calls) / seconds:.0f} log calls/s")
    print(f"a log call: median {np.median(calls):.3f} s, of 100 the slowest {np.quantile(calls, 0.99):.3f} s")
    _check(client, planned, result)
    if places.is_local():
        print(f"database: {Path('mlflow.db').stat().st_size / len(jobs):,.0f} bytes per run")
    passed = timed()
    for item in planned:
        summarise_repeats(client, item, False)
    print(f"statistics of {len(planned)} sets of repeats: {passed():.1f} s")
    for command in ["compare", *configs], ["best"]:
        passed = timed()
        subprocess.run([sys.executable, "-m", "cifar_lab", *command], check=True, stdout=subprocess.DEVNULL)
        print(f"cifar_lab {' '.join(command)}: {passed():.1f} s")


def _check(client: MlflowClient, planned: list[Repeats], result: Result) -> None:
    """That every run is there, finished, with every epoch."""
    found: list[Run] = [run for item in planned for run in queries.finished_runs(client, item.parent)]
    assert len(found) == sum(len(item.seeds) for item in planned)
    expected = [epoch.metrics["train/acc"] for epoch in result.epochs]
    for run in found:
        assert queries.history(client, run.info.run_id, "train/acc").tolist() == expected
    print(f"read back: {len(found)} runs, {len(found) * len(expected)} epochs, none lost")


if __name__ == "__main__":
    main()
