"""What the command line takes: commands, options and their types. Imports nothing heavy."""

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

METRICS = ("test/acc", "test/acc_tta", "test/loss", "val/acc", "val/loss")
PICTURES = (".png", ".svg", ".pdf")
MOST, MOST_DEVICES, MOST_SEEDS, LARGEST_SEED = 1_000_000, 1024, 10_000, 1 << 32
SHOWN = 40  # characters of what is refused


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line and exit code 2; takes no abbreviations (--seed 5 would mean seeds 0 to 4)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The parser of all commands; `command` of what it gives is the name of one."""
    parser = Parser("cifar_lab", description="Experiment-tracked research on CIFAR-10.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    for name, text in (
        ("experiment", "train experiment files with several seeds, track everything, name the best run"),
        ("pairs", "train them also one-vs-one, a classifier for each pair of classes, and say which is better"),
    ):
        add = commands.add_parser(name, help=text)
        add.set_defaults(command=name)
        _add_training_options(add)

    add = commands.add_parser("sweep", help="search for better settings; write the best as an experiment file")
    add.set_defaults(command="sweep")
    add.add_argument("experiment", help="name of a file in experiments/, or a path to a .toml file")
    add.add_argument("--trials", type=_positive, default=20, help="how many in all; default 20")
    _add_run_options(add, "set one setting, or search it: section.key=low..high or low..high:log; may be repeated")

    add = commands.add_parser("reproduce", help="train a tracked run again and say whether it comes out identical")
    add.set_defaults(command="reproduce")
    add.add_argument("run", help="id of a finished run, or a beginning of it that no other has")
    add.add_argument(
        "--tolerance", type=_tolerance, default=0.0, help="largest difference of a metric on another device; default 0"
    )
    add.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default auto: as the run was trained"
    )
    add.add_argument(
        "--data-dir", type=Path, help="folder or archive with the images; default: the cached ones of the run"
    )

    add = commands.add_parser("compare", help="mean, interval and p-value of the differences between repeats")
    add.set_defaults(command="compare")
    add.add_argument(
        "experiments", nargs="+", metavar="experiment", help="experiment name, config hash or id of a parent run"
    )
    add.add_argument("--metric", choices=METRICS, default="test/acc", help="of all of them; default test/acc")
    add.add_argument("--figure", type=_picture, default="comparison.png", help="default comparison.png")

    add = commands.add_parser("report", help="write a page about repeats: results, curves, errors, examples")
    add.set_defaults(command="report")
    add.add_argument(
        "experiments", nargs="+", metavar="experiment", help="experiment name, config hash or id of a parent run"
    )
    add.add_argument("--output", type=_page, default="report.html", help="default report.html")

    add = commands.add_parser("predict", help="classes and probabilities of image files")
    add.set_defaults(command="predict")
    add.add_argument("images", nargs="+", metavar="image", help="file, folder, or pattern such as 'photos/*.jpg'")
    add.add_argument(
        "--model", help="beginning of the id of a finished run, or models:/...; default: the champion of the data set"
    )
    add.add_argument("--top", type=_positive, default=3, help="how many classes; default 3")
    add.add_argument("--json", action="store_true", help="machine-readable")

    add = commands.add_parser("serve", help="answer HTTP requests on 127.0.0.1 with MLflow's model server")
    add.set_defaults(command="serve")
    add.add_argument("--model", help="models:/...; default: the champion of the data set")
    add.add_argument("--port", type=_port, default=5001, help="default 5001")

    add = commands.add_parser(
        "data", help="what images are there, from where, how many of each class; a picture of some"
    )
    add.set_defaults(command="data")
    _add_data_options(add)
    add.add_argument("--figure", type=_picture, default="samples.png", help="default samples.png")

    add = commands.add_parser("check-gpu", help="say in a table whether a GPU trains right here, and how fast")
    add.set_defaults(command="check-gpu")

    add = commands.add_parser("best", help="name the best run by val/acc, and why")
    add.set_defaults(command="best")

    add = commands.add_parser("relocate", help="after the folder was moved or copied, let its artifacts be found")
    add.set_defaults(command="relocate")

    add = commands.add_parser("ui", help="open the tracked runs in MLflow's UI on 127.0.0.1")
    add.set_defaults(command="ui")
    add.add_argument("--port", type=_port, default=5000, help="default 5000")

    add = commands.add_parser("server", help="become a tracking server for many people, on PostgreSQL (docs/server.md)")
    add.set_defaults(command="server")
    add.add_argument("--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1, 0.0.0.0 is all")
    add.add_argument("--port", type=_port, default=5000, help="default 5000")
    for command in (parser, *commands.choices.values()):
        default = False if command is parser else argparse.SUPPRESS
        command.add_argument("--debug", action="store_true", default=default, help="show the traceback of what fails")
    return parser


def _add_training_options(add: Parser) -> None:
    add.add_argument(
        "experiments", nargs="+", metavar="experiment", help="name of a file in experiments/, or a path to a .toml file"
    )
    add.add_argument(
        "--seeds", type=_seeds, default="8", help="how many (8: seeds 0 to 7) or which (3,5,8 or 3,); default 8"
    )
    _add_run_options(add, "override one setting; may be repeated")
    add.add_argument("--devices", type=_positive, help="that share each run's batches; default: the file's, 1")
    add.add_argument("--cluster", metavar="address", help="train on this Ray cluster instead of on this machine")
    add.add_argument("--gpus", type=_gpus, default=0, help="of the cluster, for one run, such as 1 or 0.25; default 0")


def _add_run_options(add: Parser, override: str) -> None:
    add.add_argument("--epochs", type=_positive, help="default: the experiment file's, 8")
    add.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        dest="overrides",
        help=override,
    )
    _add_data_options(add)
    add.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default auto: a GPU if there is one"
    )
    add.add_argument(
        "--jobs",
        type=lambda text: None if text == "auto" else _positive(text),
        help="runs at once; default auto: as the cores allow, one on a GPU",
    )


def _add_data_options(add: Parser) -> None:
    add.add_argument(
        "--data",
        choices=("auto", "cifar10", "cifar100", "digits"),
        default="auto",
        help="auto (default): what --data-dir holds; else CIFAR-10, or the stand-in digits if it can't be had",
    )
    add.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("CIFAR_LAB_DATA") or None,
        help="folder, archive or .npz with CIFAR-10, CIFAR-100 or images of your own (<split>/<class>/* or <class>/*); "
        "default $CIFAR_LAB_DATA, then data/, ../shared/data/, where Keras and others keep theirs, download",
    )
    add.add_argument("--data-name", metavar="name", help="of images of your own; default: that of the folder or file")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is not a positive whole number up to {MOST:,}")
    return value


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST_DEVICES or 1 < value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of GPUs nor a part of one")
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


def _page(text: str) -> Path:
    if Path(text).suffix != ".html":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .html")
    return Path(text)


def _port(text: str) -> int:
    port = _positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return port


def _seeds(text: str) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
        seeds = tuple(numbers) if "," in text else tuple(range(min(numbers[0], MOST_SEEDS + 1)))
    except ValueError:
        seeds = ()
    different = len(set(seeds)) == len(seeds)
    if not (0 < len(seeds) <= MOST_SEEDS and different and 0 <= min(seeds) <= max(seeds) < LARGEST_SEED):
        kinds = f"a count from 1 to {MOST_SEEDS:,} nor different seeds such as 3,5,8"
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is neither {kinds}")
    return seeds
