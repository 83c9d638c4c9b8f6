"""Measure everything, or what is named, and print it; all of it is also written to RESULTS.md."""

import argparse
import logging
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks import commands, inside
from cifar_lab.data.cache import load_dataset
from cifar_lab.files import atomic_write
from cifar_lab.training.hardware import processor

RESULTS = Path("benchmarks/RESULTS.md")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "mlflow", "scikit-learn")
HEADER = "| what | ours | other | ratio | better |\n|---|---|---|---|---|"
MEASURES = {
    "choices": inside.choices,
    "epoch": inside.epoch,
    "pipeline": inside.pipeline,
    "step": inside.step,
    "linear": commands.linear,
    "jobs": commands.jobs,
    "startup": commands.startup,
}


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(MEASURES)}; default all")
    names = parser.parse_args().names or list(MEASURES)
    if unknown := set(names) - set(MEASURES):
        parser.error(f"no measure {', '.join(unknown)}; known: {', '.join(MEASURES)}")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not that it makes tables
    dataset, _ = load_dataset("cifar10")
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in names:
        for row in MEASURES[name](dataset):
            print(row, flush=True)
            lines.append(str(row))
    if len(names) == len(MEASURES):
        with atomic_write(RESULTS) as path:
            path.write_text(_text(dataset.title, lines))


def _text(title: str, lines: list[str]) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return "\n".join(
        [
            "# Speed",
            "",
            "Written by `make bench`. Both sides of a row were measured in the same run, in turn, the median of three",
            "or more (4: once); ratio is ours to the other in time or rate, where 1 is equal.",
            "",
            f"{date.today()}, {os.cpu_count()} cores of {processor()}, Python {platform.python_version()}, {versions};",
            f"{title}.",
            "",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
