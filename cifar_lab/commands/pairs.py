"""The same one-vs-one beside it: is a classifier for each pair of classes better?"""

import argparse

from cifar_lab.commands.request import requested


def run(options: argparse.Namespace) -> int:
    """0, 1 if a run failed, 130 if interrupted."""
    arguments = requested(options)
    from cifar_lab.execution.pairs import run_pairs

    return run_pairs(*arguments)
