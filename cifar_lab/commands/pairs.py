"""Train experiments as they are and one-vs-one, and compare both."""

import argparse

from cifar_lab.commands.request import requested


def run(options: argparse.Namespace) -> int:
    """Returns 0, 1 if a run failed, 130 if interrupted. Raises UserError."""
    arguments = requested(options)
    from cifar_lab.execution.pairs import run_pairs

    return run_pairs(*arguments)
