"""The command line. What is heavy is imported by the command that needs it, after its arguments are checked."""

import argparse
import codecs
import logging
import os
import signal
import sys
import warnings
from multiprocessing import forkserver
from typing import Any

from cifar_lab.arguments import make_parser
from cifar_lab.processes import PRELOAD, fork_server

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a failure, 2 for a wrong command line, 130 if interrupted."""
    _write_what_the_terminal_can()
    if "error" in os.environ.get("PYTHONWARNINGS", ""):  # would end the libraries' own imports
        del os.environ["PYTHONWARNINGS"]
        warnings.resetwarnings()
    options = make_parser().parse_args(arguments)
    from cifar_lab.config import UserError

    logger = logging.getLogger("cifar_lab")
    if options.debug:
        logging.basicConfig()
        logger.setLevel(logging.DEBUG)
    handlers = [signal.signal(number, _interrupt) for number in INTERRUPTS]
    try:
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        handlers = [signal.SIG_IGN] * len(INTERRUPTS)  # to the end of the process
        return 130
    except BrokenPipeError:  # as of `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        logger.debug("", exc_info=error)
        print(f"cifar_lab: {_reason(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1
    finally:
        for number, handler in zip(INTERRUPTS, handlers, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    """End the command, once: while it ends its workers, another Ctrl-C changes nothing."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _reason(error: Exception) -> str:
    """One line: what the user can mend, or that this is our mistake."""
    from cifar_lab.config import UserError, disk_trouble, printable

    if isinstance(error, UserError):
        return printable(str(error))
    store = sys.modules.get("cifar_lab.store")  # where it is not loaded, the trouble is not tracking's
    reason = store.explain(error) if store else disk_trouble(error)
    if isinstance(error, ImportError):
        reason = f"{error} (a package is missing, or memory to load it)"
    ours = f"{type(error).__name__}: {error} (a mistake of cifar_lab, please report it; --debug shows where it is)"
    return printable(" ".join((reason or ours).split()))


def _write_what_the_terminal_can() -> None:
    """Let no character end a command that the terminal's encoding lacks."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        missing = error.object[error.start : error.end]
        return "".join("+-" if character == "±" else "?" for character in missing), error.end

    codecs.register_error("cifar_lab", replace)
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="cifar_lab")


def experiment(options: argparse.Namespace) -> int:
    """Train, track, summarise, name the best run."""
    arguments = _checked(options)
    from cifar_lab.experiment import run_experiments

    return run_experiments(*arguments)[0]


def pairs(options: argparse.Namespace) -> int:
    """The same with a classifier for each pair of classes beside it; compare."""
    arguments = _checked(options)
    from cifar_lab.pairs import run_pairs

    return run_pairs(*arguments)


def sweep(options: argparse.Namespace) -> int:
    """Search for better settings."""
    from cifar_lab.config import experiment_name
    from cifar_lab.space import parse_space

    space = parse_space(experiment_name(options.experiment), options.experiment, _overrides(options))
    images = _images(options)
    from cifar_lab.sweep import run_sweep

    return run_sweep(space, options.trials, *images, options.accelerator, options.jobs)


def _checked(options: argparse.Namespace) -> tuple[Any, ...]:
    """Configs, seeds, images and workers that the options ask for."""
    from cifar_lab.config import UsageError, experiment_name, load_config

    names = [experiment_name(name) for name in options.experiments]
    if len(set(names)) < len(names):
        raise UsageError(f"an experiment is named twice: {', '.join(names)}")
    overrides = _overrides(options)
    configs = {name: load_config(file, overrides) for name, file in zip(names, options.experiments, strict=True)}
    if options.cluster and (options.jobs or options.accelerator != "auto"):
        raise UsageError("--cluster places the runs itself: leave out --jobs and --accelerator; --gpus asks for GPUs")
    if options.gpus and not options.cluster:
        raise UsageError("--gpus is what a run takes of a --cluster; here --accelerator gpu asks for the GPU")
    images = _images(options)
    if options.cluster:
        from cifar_lab.cluster import Cluster

        return configs, options.seeds, *images, Cluster(options.cluster, options.gpus)
    from cifar_lab.pool import Pool

    return configs, options.seeds, *images, Pool(options.accelerator, options.jobs)


def _overrides(options: argparse.Namespace) -> list[str]:
    given = {name: getattr(options, name, None) for name in ("epochs", "devices")}
    return [*options.overrides, *(f"trainer.{name}={value}" for name, value in given.items() if value)]


def _images(options: argparse.Namespace) -> tuple[Any, str]:
    """The data set, and why it is a stand-in; while it is decoded the workers' imports begin."""
    from cifar_lab.datasets import decoded
    from cifar_lab.search import find_source

    source = find_source(options.data, options.data_dir)
    if not getattr(options, "cluster", None) and (sys.platform != "darwin" or options.accelerator == "cpu"):
        _import_for_workers()
    return decoded(source), source.stand_in_because


def _import_for_workers() -> None:
    """Start the fork server that workers come from: it imports what they need while this process does the same."""
    fork_server(PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the driver to answer
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)


def reproduce(options: argparse.Namespace) -> int:
    """Train a run again and compare."""
    from cifar_lab.reproduce import reproduce

    return reproduce(options.run, options.tolerance, options.accelerator, options.data_dir)


def compare(options: argparse.Namespace) -> int:
    """Compare sets of repeats."""
    from cifar_lab.compare import compare_experiments
    from cifar_lab.config import experiment_name

    return compare_experiments([*map(experiment_name, options.experiments)], options.metric, options.figure)


def report(options: argparse.Namespace) -> int:
    """Write a page about repeats."""
    from cifar_lab.config import experiment_name
    from cifar_lab.report import write_report

    return write_report([*map(experiment_name, options.experiments)], options.output)


def predict(options: argparse.Namespace) -> int:
    """Classify image files."""
    from cifar_lab.predict import predict

    return predict(options.images, options.model, options.top, options.json)


def serve(options: argparse.Namespace) -> int:
    """Become MLflow's model server."""
    from cifar_lab.serve import serve

    return serve(options.model, options.port)


def data(options: argparse.Namespace) -> int:
    """Show what images are there."""
    from cifar_lab.data import show_data

    return show_data(options.data, options.data_dir, options.figure)


def best(options: argparse.Namespace) -> int:
    """Name the best runs."""
    from cifar_lab.best import print_best

    return print_best()


def check_gpu(options: argparse.Namespace) -> int:
    """Check a GPU."""
    from cifar_lab.check_gpu import check_gpu

    return check_gpu()


def relocate(options: argparse.Namespace) -> int:
    """Let the artifacts follow a moved folder."""
    from cifar_lab.store import relocate

    print(relocate())
    return 0


def ui(options: argparse.Namespace) -> int:
    """Become MLflow's UI."""
    from cifar_lab.ui import start_ui

    start_ui(options.port)


def server(options: argparse.Namespace) -> int:
    """Become MLflow's tracking server."""
    from cifar_lab.server import start_server

    start_server(options.host, options.port)


FUNCTIONS = (
    experiment,
    pairs,
    sweep,
    reproduce,
    compare,
    report,
    best,
    predict,
    serve,
    data,
    check_gpu,
    ui,
    server,
    relocate,
)
COMMANDS = {function.__name__.replace("_", "-"): function for function in FUNCTIONS}

if __name__ == "__main__":
    sys.exit(main())
