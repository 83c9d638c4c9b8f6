"""After the folder was moved or copied, let its artifacts be found."""

import argparse

from cifar_lab.tracking.store import relocate


def run(options: argparse.Namespace) -> int:
    """0; raises UserError."""
    print(relocate())
    return 0
