"""The arguments of commands that train: configs, seeds, images, workers. Checks them before any heavy import."""

import argparse
import signal
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from typing import Any

from cifar_lab.config import load_config
from cifar_lab.errors import UsageError, printable
from cifar_lab.experiment_files import experiment_name, read_experiment, split_variant
from cifar_lab.processes import PRELOAD, fork_server


def requested(options: argparse.Namespace) -> tuple[Any, ...]:
    """The arguments of run_experiments. Raises UserError."""
    files = named(options)
    configs = {name: load_config(file, overrides(options)) for name, file in files.items()}
    return configs, options.seeds, *images(options), workers(options)


def named(options: argparse.Namespace) -> dict[str, str]:
    """The requested experiment files by the name of the experiment; starts the workers' fork server.

    Raises UsageError for options that contradict each other and for files that are missing.
    """
    names = experiment_names(options.experiments)
    if options.cluster and (options.jobs or options.accelerator != "auto"):
        raise UsageError("--cluster places the runs: leave out --jobs and --accelerator; set GPUs with --gpus")
    if options.gpus and not options.cluster:
        raise UsageError("--gpus is only for --cluster; on this machine use --accelerator gpu")
    if not options.cluster:
        import_for_workers(options.accelerator)
    return dict(zip(names, options.experiments, strict=True))


def workers(options: argparse.Namespace) -> Any:
    """The cluster, or the pool of processes, that trains the runs. Raises UserError."""
    if options.cluster:
        from cifar_lab.execution.cluster import Cluster

        return Cluster(options.cluster, options.gpus)
    from cifar_lab.execution.local import Pool

    return Pool(options.accelerator, options.jobs)


def experiment_names(files: Sequence[str]) -> list[str]:
    """The names of experiment files. Raises UsageError if one is not there, or if two have the same name."""
    names = [experiment_name(file) for file in files]
    if len(set(names)) < len(names):
        raise UsageError(f"an experiment is named twice: {', '.join(names)}")
    for file in files:
        read_experiment(split_variant(file)[0])
    return names


def overrides(options: argparse.Namespace) -> list[str]:
    """All overrides of the experiment file, as section.key=value."""
    given = {name: getattr(options, name, None) for name in ("epochs", "devices")}
    return [*options.overrides, *(f"trainer.{name}={value}" for name, value in given.items() if value)]


def images(options: argparse.Namespace) -> tuple[Any, str]:
    """The data set, and why it is a stand-in ("" if it is not). Prints where it is from."""
    from cifar_lab.data.cache import decoded
    from cifar_lab.data.search import find_source

    source = find_source(options.data, options.data_dir, options.data_name)
    if options.data != "digits" and not source.fallback_reason:
        print(f"images from {printable(source.place)}", file=sys.stderr)
    return decoded(source), source.fallback_reason


def import_for_workers(accelerator: str) -> None:
    """Start the workers' fork server, if they will have one: it does their imports while this process does its own."""
    if sys.platform == "darwin" and accelerator != "cpu":
        return
    fork_server(PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: the driver handles Ctrl-C
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)
