"""Write the results of experiments to files: CSV for programs, Markdown and LaTeX for texts."""

import argparse

from cifar_lab.analysis.exports import as_csv, as_latex, as_markdown
from cifar_lab.experiment_files import experiment_name
from cifar_lab.files import atomic_write
from cifar_lab.tracking import store
from cifar_lab.tracking.results import load_results

WRITERS = {".csv": as_csv, ".md": as_markdown, ".tex": as_latex}


def run(options: argparse.Namespace) -> int:
    """Write one file of each kind. Raises UserError."""
    results = load_results(store.connect(), [*map(experiment_name, options.experiments)])
    files = {options.output.with_name(options.output.name + ending): write for ending, write in WRITERS.items()}
    for file, write in files.items():
        with atomic_write(file) as path:
            path.write_text(write(results), encoding="utf-8")
    groups = len({result.images for result in results})
    many = "experiment" if len(results) == 1 else "experiments"
    where = "1 data set" if groups == 1 else f"{groups} data sets or splits"
    print(f"{len(results)} {many} on {where}: {', '.join(map(str, files))}")
    return 0
