"""Train experiment files with several seeds, track everything, name the best run."""

import argparse

from cifar_lab.commands.request import requested


def run(options: argparse.Namespace) -> int:
    """Returns 0, 1 if a run failed, 130 if interrupted. Raises UserError."""
    arguments = requested(options)
    from cifar_lab.execution.experiment import run_experiments

    return run_experiments(*arguments)[0]
