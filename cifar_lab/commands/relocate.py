"""Correct the artifact paths in mlflow.db after its folder was moved or copied."""

import argparse

from cifar_lab.tracking.store import relocate


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises UserError."""
    print(relocate())
    return 0
