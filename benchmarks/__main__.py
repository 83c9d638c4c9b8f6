"""Print the named measurements, or all of them; all of them, and those on a GPU, are also written to RESULTS.md."""

import argparse
import logging
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks import commands, gpu, inside, tutorial
from cifar_lab.analysis.tables import markdown_table
from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UserError
from cifar_lab.files import atomic_write
from cifar_lab.training.hardware import processor

RESULTS = Path("benchmarks/RESULTS.md")
GPU = "gpu"  # measured only if it is named
GPU_HEADING = "## On a GPU\n\n"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "mlflow", "scikit-learn")
HEADER = markdown_table(("what", "ours", "other", "ratio", "better"), [], aligned=False)
MEASURES = {
    "choices": inside.choices,
    "epoch": inside.epoch,
    "pipeline": inside.pipeline,
    "step": inside.step,
    "linear": commands.linear,
    "jobs": commands.jobs,
    "startup": commands.startup,
    "tutorial": tutorial.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(MEASURES)}; default all; or {GPU}")
    names = parser.parse_args().names or list(MEASURES)
    if unknown := set(names) - set(MEASURES) - {GPU}:
        parser.error(f"no measure {', '.join(unknown)}; known: {', '.join([*MEASURES, GPU])}")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # hides its messages about creating tables
    try:
        dataset, _ = load_dataset("cifar10")
    except UserError as error:
        sys.exit(f"benchmarks: {error}")
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in names:
        for row in (MEASURES | {GPU: gpu.rows})[name](dataset):
            print(row, flush=True)
            lines.append(str(row))
    here, heading, there = RESULTS.read_text().partition(GPU_HEADING) if RESULTS.exists() else ("", "", "")
    if len(names) == len(MEASURES):
        here = _text(dataset.title, lines)
    elif names == [GPU]:
        heading, there = GPU_HEADING, f"{date.today()}, {gpu.card()}; {dataset.title}.\n\n" + "\n".join([*lines, ""])
    else:
        return
    with atomic_write(RESULTS) as path:
        path.write_text(f"{here.rstrip()}\n" + (f"\n{heading}{there}" if heading else ""))


def _text(title: str, lines: list[str]) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return "\n".join(
        [
            "# Speed",
            "",
            "Written by `make bench`. Both sides of a row were measured alternately in the same run; each is a median",
            "of at least three (4 and 7: measured once). The ratio is ours to the other, of times or rates.",
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
