"""Train experiments with each value of one setting; show and draw their accuracy over it."""

import argparse

from cifar_lab.commands.request import images, named, overrides, workers
from cifar_lab.execution.variants import parse_variants


def run(options: argparse.Namespace) -> int:
    """Returns 0, 1 if a run failed, 130 if interrupted. Raises UserError."""
    variants = parse_variants(named(options), options.key, options.values, overrides(options))
    found = images(options)
    from cifar_lab.execution.curve import run_curve

    return run_curve(variants, options.key, options.figure, options.seeds, *found, workers(options))
