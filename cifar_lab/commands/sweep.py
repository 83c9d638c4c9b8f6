"""Search for better settings; write the best as an experiment file."""

import argparse

from cifar_lab.commands.request import images, import_for_workers, overrides
from cifar_lab.execution.space import parse_space
from cifar_lab.experiment_files import experiment_name, read_experiment


def run(options: argparse.Namespace) -> int:
    """Returns 0, 1 if no trial was completed, 130 if interrupted. Raises UserError."""
    read_experiment(options.experiment)
    import_for_workers(options.accelerator)
    space = parse_space(experiment_name(options.experiment), options.experiment, overrides(options), options.seeds)
    dataset, fallback_reason = images(options)
    from cifar_lab.execution.local import Pool
    from cifar_lab.execution.sweep import run_sweep

    return run_sweep(space, options.trials, dataset, fallback_reason, Pool(options.accelerator, options.jobs))
