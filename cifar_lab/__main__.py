"""The command line. What is heavy is imported by the command that needs it, after its arguments are checked."""

import argparse
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

METRICS = ("test/acc", "test/acc_tta", "test/loss", "val/acc", "val/loss")
PICTURES = (".png", ".svg", ".pdf")


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line and exit code 2; takes no abbreviations (--seed 5 would mean seeds 0 to 4)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a failure, 2 for a wrong command line, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    from cifar_lab.config import UserError, disk_trouble

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.command(options)
    except UserError as error:
        print(f"cifar_lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        store = sys.modules.get("cifar_lab.store")  # where it is not loaded, the trouble is not tracking's
        reason = store.explain(error) if store else disk_trouble(error)
        if not reason:
            raise
        print(f"cifar_lab: {reason}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser("cifar_lab", description="Experiment-tracked research on CIFAR-10.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    add = commands.add_parser(
        "experiment", help="train experiment files with several seeds, track everything, name the best run"
    )
    add.set_defaults(command=experiment)
    add.add_argument(
        "experiments", nargs="+", metavar="experiment", help="name of a file in experiments/, or a path to a .toml file"
    )
    add.add_argument(
        "--seeds", type=_seeds, default="8", help="how many (8: seeds 0 to 7) or which (3,5,8 or 3,); default 8"
    )
    add.add_argument("--epochs", type=_positive, help="default: the experiment file's, 8")
    add.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        dest="overrides",
        help="override one setting; may be repeated",
    )
    add.add_argument(
        "--data",
        choices=("auto", "cifar10", "digits"),
        default="auto",
        help="auto (default): CIFAR-10, or the stand-in digits if it can't be had; cifar10: fail instead",
    )
    add.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("CIFAR_LAB_DATA") or None,
        help="folder or archive with CIFAR-10; default $CIFAR_LAB_DATA, then data/, ../shared/data/, download",
    )
    add.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default auto: a GPU if there is one"
    )
    add.add_argument(
        "--jobs",
        type=lambda text: None if text == "auto" else _positive(text),
        help="runs at once; default auto: as the cores allow, one on a GPU",
    )

    add = commands.add_parser("reproduce", help="train a tracked run again and say whether it comes out identical")
    add.set_defaults(command=reproduce)
    add.add_argument("run", help="id of a finished run, or a beginning of it that no other has")
    add.add_argument(
        "--tolerance", type=_tolerance, default=0.0, help="largest difference of a metric on another device; default 0"
    )
    add.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default auto: as the run was trained"
    )
    add.add_argument(
        "--data-dir", type=Path, help="folder or archive with CIFAR-10; default: the cached images of the run"
    )

    add = commands.add_parser("compare", help="mean, interval and p-value of the differences between repeats")
    add.set_defaults(command=compare)
    add.add_argument(
        "experiments", nargs="+", metavar="experiment", help="experiment name, config hash or id of a parent run"
    )
    add.add_argument("--metric", choices=METRICS, default="test/acc", help="of all of them; default test/acc")
    add.add_argument("--figure", type=_picture, default="comparison.png", help="default comparison.png")

    add = commands.add_parser("best", help="name the best run by val/acc, and why")
    add.set_defaults(command=best)

    add = commands.add_parser("relocate", help="after the folder was moved or copied, let its artifacts be found")
    add.set_defaults(command=relocate)

    add = commands.add_parser("ui", help="open the tracked runs in MLflow's UI on 127.0.0.1")
    add.set_defaults(command=ui)
    add.add_argument("--port", type=_port, default=5000, help="default 5000")
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def _picture(text: str) -> Path:
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    return Path(text)


def _port(text: str) -> int:
    port = _positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return port


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = (
            tuple(int(part) for part in text.removesuffix(",").split(",")) if "," in text else tuple(range(int(text)))
        )
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive count nor different seeds such as 3,5,8")
    return seeds


def experiment(options: argparse.Namespace) -> int:
    """Train, track, summarise, name the best run."""
    from cifar_lab.config import UsageError, experiment_name, load_config

    overrides = [*options.overrides, *([f"trainer.epochs={options.epochs}"] if options.epochs else [])]
    names = [experiment_name(name) for name in options.experiments]
    if len(set(names)) < len(names):
        raise UsageError(f"an experiment is named twice: {', '.join(names)}")
    configs = {name: load_config(file, overrides) for name, file in zip(names, options.experiments, strict=True)}

    from cifar_lab.datasets import decoded, find_source

    source = find_source(options.data, options.data_dir)
    if options.accelerator != "gpu":
        _import_for_workers()
    dataset = decoded(source)

    from cifar_lab.experiment import run_experiments

    return run_experiments(configs, options.seeds, dataset, source.stand_in_because, options.accelerator, options.jobs)


def _import_for_workers() -> None:
    """Start the fork server that CPU workers come from: it imports what they need while this process does the same."""
    multiprocessing.set_forkserver_preload(["cifar_lab.repeat", "mlflow.store.tracking.sqlalchemy_store"])
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


def best(options: argparse.Namespace) -> int:
    """Name the best runs."""
    from cifar_lab.best import print_best

    return print_best()


def relocate(options: argparse.Namespace) -> int:
    """Let the artifacts follow a moved folder."""
    from cifar_lab.store import relocate

    print(relocate())
    return 0


def ui(options: argparse.Namespace) -> int:
    """Become MLflow's UI."""
    from cifar_lab.ui import start_ui

    start_ui(options.port)


if __name__ == "__main__":
    sys.exit(main())
