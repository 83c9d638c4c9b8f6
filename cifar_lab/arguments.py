"""The command line: commands, options and their types. Imports nothing heavy."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

METRICS = ("test/acc", "test/acc_tta", "test/loss", "val/acc", "val/loss")
MOST, MOST_DEVICES, MOST_SEEDS, LARGEST_SEED = 1_000_000, 1024, 10_000, 1 << 32
SEEDS = f"a count from 1 to {MOST_SEEDS:,} nor different seeds such as 3,5,8"
SHOWN = 40  # characters of a refused value
AddCommand = Callable[..., argparse.ArgumentParser]
FILE = "name of a file in experiments/, or path of a .toml file"
REPEATS = "experiment name, config hash, or id of a parent run"


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with exit code 2; allows no abbreviations (--seed 5 would mean seeds 0 to 4)."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, **options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The parser of all commands; it stores the command's name as `command`."""
    parser = Parser("cifar_lab", description="Experiment-tracked research on CIFAR-10.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    _add_training(commands.add_parser)
    _add_results(commands.add_parser)
    _add_models(commands.add_parser)
    data = commands.add_parser("data", help="show which images are found, where, and how many of each class")
    _add_images(data)
    data.add_argument("--figure", type=_figure, default="samples.png", help="drawing of some; default samples.png")
    commands.add_parser("check-gpu", help="check whether the GPU here trains correctly, and measure how fast")
    commands.add_parser("relocate", help="after the folder was moved or copied, let mlflow.db find its artifacts")
    clean = commands.add_parser("clean", help="free the disk of runs that were deleted in MLflow's UI; asks first")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    ui = commands.add_parser("ui", help="open the tracked runs in MLflow's UI on 127.0.0.1")
    ui.add_argument("--port", type=_port, default=5000, help="default 5000")
    server = commands.add_parser("server", help="start a tracking server for a team, on PostgreSQL (docs/server.md)")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 for all; default 127.0.0.1")
    server.add_argument("--port", type=_port, default=5000, help="default 5000")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def _add_training(add_command: AddCommand) -> None:
    for name, text in (
        ("experiment", "train experiments with several seeds, track everything, name the best run"),
        ("pairs", "train each experiment also one-vs-one, with a classifier per pair of classes, and compare"),
        ("curve", "train each experiment with each value of one setting, and draw the accuracy over it"),
    ):
        command = add_command(name, help=text)
        command.add_argument("experiments", nargs="+", metavar="experiment", help=FILE)
        text = "how many (8: seeds 0 to 7) or which (3,5,8 or 3,); default 8"
        command.add_argument("--seeds", type=_seeds, default="8", help=text)
        _add_run_options(command, "override a setting; may be repeated")
        text = "devices that share the batches of a run; default: as in the experiment file, else 1"
        command.add_argument("--devices", type=_positive, help=text)
        command.add_argument("--cluster", metavar="address", help="train on this Ray cluster, not on this machine")
        command.add_argument("--gpus", type=_gpus, default=0, help="GPUs per run on the cluster, 1 or 0.25; default 0")
        if name == "curve":
            text = "the setting; those of the network are in the section model"
            command.add_argument("--key", required=True, metavar="section.key", help=text)
            text = "its values, written as in an experiment file"
            command.add_argument("--values", required=True, nargs="+", metavar="value", help=text)
            command.add_argument("--figure", type=_figure, default="curve.png", help="default curve.png")

    command = add_command("sweep", help="search for better settings and write the best ones as an experiment file")
    command.add_argument("experiment", help=FILE)
    command.add_argument("--trials", type=_positive, default=20, help="number of trials in all; default 20")
    text = "seeds of each trial, which is judged by their mean: how many or which; default 1 (seed 0)"
    command.add_argument("--seeds", type=_seeds, default="1", help=text)
    _add_run_options(command, "fix a setting, or search section.key=low..high or low..high:log; may be repeated")

    command = add_command("reproduce", help="train a tracked run again and say whether it comes out identical")
    command.add_argument("run", help="id of a finished run, or its beginning if that is unambiguous")
    text = "largest difference of a metric that is accepted, for another device; default 0"
    command.add_argument("--tolerance", type=_tolerance, default=0.0, help=text)
    _add_accelerator(command, "default auto: that of the run")
    command.add_argument("--data-dir", type=Path, help="folder or archive with the images; default: the cached ones")
    _add_trust(command)


def _add_results(add_command: AddCommand) -> None:
    command = add_command("compare", help="differences between experiments, with intervals and p-values")
    command.add_argument("experiments", nargs="+", metavar="experiment", help=REPEATS)
    command.add_argument("--metric", choices=METRICS, default="test/acc", help="default test/acc")
    text = "difference that does not matter, in points for accuracies: also test for equality within it"
    command.add_argument("--margin", type=_tolerance, default=0.0, help=text)
    command.add_argument("--plan", action="store_true", help="show which differences more or fewer seeds would find")
    command.add_argument("--figure", type=_figure, default="comparison.png", help="default comparison.png")

    command = add_command("results", help="write a table of results as CSV, Markdown and LaTeX")
    text = f"{REPEATS}; default: all with finished runs"
    command.add_argument("experiments", nargs="*", metavar="experiment", help=text)
    text = "path without the ending; default results, for results.csv, results.md and results.tex"
    command.add_argument("--output", type=_stem, default="results", help=text)

    command = add_command("report", help="write a page about experiments: results, curves, errors, calibration")
    command.add_argument("experiments", nargs="+", metavar="experiment", help=REPEATS)
    command.add_argument("--output", type=_page, default="report.html", help="default report.html")
    _add_trust(command)

    command = add_command("evaluate", help="test runs on corrupted images, published test sets, or foreign images")
    command.add_argument("run", help=f"{REPEATS}, for all its seeds; or beginning of the id of one run")
    text = "corruptions (default): of the test images; or a folder with the files of CIFAR-10-C or CIFAR-10.1"
    command.add_argument("--data", default="corruptions", help=text)
    text = "only these, such as fog or jpeg_compression; default: all"
    command.add_argument("--corruptions", nargs="+", default=(), metavar="name", help=text)
    text = "images of another kind, to tell from the test images: digits, cifar10, cifar100 or a folder"
    command.add_argument("--against", metavar="images", help=text)
    _add_trust(command)

    add_command("best", help="name the best run by val/acc, and the reason")


def _add_models(add_command: AddCommand) -> None:
    command = add_command("predict", help="classify image files")
    command.add_argument("images", nargs="+", metavar="image", help="file, folder, or pattern such as 'photos/*.jpg'")
    text = "beginning of a run's id, experiment name (its best run), or models:/...; default: the champion"
    command.add_argument("--model", help=text)
    command.add_argument("--top", type=_positive, default=3, help="number of classes to show; default 3")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_trust(command)

    command = add_command("serve", help="answer HTTP requests on 127.0.0.1 with MLflow's model server")
    command.add_argument("--model", help="models:/...; default: the champion of the data set")
    command.add_argument("--port", type=_port, default=5001, help="default 5001")


def _add_run_options(command: argparse.ArgumentParser, override: str) -> None:
    command.add_argument("--epochs", type=_positive, help="default: as in the experiment file, else 8")
    options: dict[str, Any] = {"action": "append", "default": [], "dest": "overrides"}
    command.add_argument("--set", metavar="section.key=value", help=override, **options)
    _add_images(command)
    _add_accelerator(command, "default auto: a GPU if there is one")
    text = "runs at a time; default auto: one per GPU, or as many as the cores allow"
    command.add_argument("--jobs", type=lambda text: None if text == "auto" else _positive(text), help=text)


def _add_images(command: argparse.ArgumentParser) -> None:
    text = "auto (default): what --data-dir holds; else CIFAR-10, or digits as a stand-in if it can't be had"
    command.add_argument("--data", choices=("auto", "cifar10", "cifar100", "digits"), default="auto", help=text)
    text = (
        "folder, archive or .npz with CIFAR-10, CIFAR-100 or images of your own (<split>/<class>/* or <class>/*); "
        "default $CIFAR_LAB_DATA, then data/, ../shared/data/, the caches of Keras and others, download"
    )
    command.add_argument("--data-dir", type=Path, default=os.environ.get("CIFAR_LAB_DATA") or None, help=text)
    text = "name of images of your own; default: that of the folder or file"
    command.add_argument("--data-name", metavar="name", help=text)


def _add_trust(command: argparse.ArgumentParser) -> None:
    text = "execute the network file that a run on a tracking server has, if networks/ here has another one"
    command.add_argument("--trust", action="store_true", help=text)


def _add_accelerator(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help=text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is not a positive whole number up to {MOST:,}")
    return value


def _number(text: str) -> float:
    """A number, or -1."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def _gpus(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= MOST_DEVICES or 1 < value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of GPUs nor a fraction of one")
    return value


def _tolerance(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative number")
    return value


def _figure(text: str) -> Path:
    return _ending(text, ".png", ".svg", ".pdf")


def _page(text: str) -> Path:
    return _ending(text, ".html")


def _stem(text: str) -> Path:
    path = Path(text)
    if path.suffix in (".csv", ".md", ".tex") or path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} has to be a path without an ending; .csv, .md and .tex are added")
    return path


def _ending(text: str, *suffixes: str) -> Path:
    if Path(text).suffix not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(suffixes)}")
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
    if not are_seeds(seeds):
        raise argparse.ArgumentTypeError(f"{text[:SHOWN]!r} is neither {SEEDS}")
    return seeds


def are_seeds(numbers: Sequence[int]) -> bool:
    """Whether they are different, and neither too large nor too many."""
    different = len(set(numbers)) == len(numbers)
    return 0 < len(numbers) <= MOST_SEEDS and different and 0 <= min(numbers) <= max(numbers) < LARGEST_SEED
