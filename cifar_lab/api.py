"""The functions of `import cifar_lab`. What is heavy is imported by the function that needs it."""

import operator
import os
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cifar_lab.arguments import METRICS, MOST_SEEDS, SEEDS, SHOWN, are_seeds
from cifar_lab.commands.request import experiment_names, import_for_workers
from cifar_lab.config import Config, load_config
from cifar_lab.errors import UsageError, UserError
from cifar_lab.experiment_files import experiment_name

if TYPE_CHECKING:
    import pandas as pd

    from cifar_lab.data.cache import Dataset
    from cifar_lab.tracking.models import Model
    from cifar_lab.training.train import Result

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which MLflow imports, in a notebook


def dataset(name: str = "auto", data_dir: str | Path | None = None, data_name: str | None = None) -> "Dataset":
    """A data set: `images["train"]` and `images["test"]` (n, 32, 32, 3) uint8, `labels` (n,), `classes`.

    name: auto, cifar10, cifar100 or digits; data_dir: a folder, archive or .npz, by default $CIFAR_LAB_DATA, then where
    `make data` looks, then the download; data_name: a name for images of your own. Warns if digits stand in for
    CIFAR-10. Raises UserError if the images are missing or damaged, UsageError for a wrong name.
    """
    return _announced(*_find_images(name, data_dir, data_name))


def train(config: str | Config, seed: int = 0, dataset: "Dataset | None" = None, accelerator: str = "auto") -> "Result":
    """Train once, in this process, untracked; gives the same weights as the tracked run with the same arguments.

    config: an experiment's name, the path of a .toml file, or a Config; dataset: by default dataset(); accelerator:
    auto, cpu or gpu. The result has `model`, `epochs` (each with `metrics`), `test` (`test["test/acc"]`) and
    `weights_digest`; `model.confusion["test"]` counts (classes, classes), rows true, columns predicted. torch's
    settings are as before afterwards. Raises UserError, also if the training diverges.
    """
    (seed,) = _seeds([seed])
    config = load_config(config) if isinstance(config, str) else config
    from cifar_lab.data.selection import select
    from cifar_lab.networks.build import check_network
    from cifar_lab.training import hardware
    from cifar_lab.training.train import resolve_config
    from cifar_lab.training.train import train as train_once

    device = hardware.resolve_accelerator(accelerator)
    hardware.check_devices(device, config.trainer.devices)
    images = select(_announced(*_find_images()) if dataset is None else dataset, config.data)
    resolved = resolve_config(config, images, hardware.fast_precision(device))
    check_network(resolved, images)
    handler = signal.getsignal(signal.SIGINT)
    with TemporaryDirectory() as folder, hardware.settings_kept():
        try:
            return train_once(resolved, seed, images, Path(folder) / "last.ckpt", device)
        except SystemExit:  # Lightning turned Ctrl-C into it, and ignores the next one
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None


def experiment(
    names: str | Sequence[str] | Mapping[str, Config],
    seeds: int | Sequence[int] = 8,
    dataset: "Dataset | None" = None,
    *,
    overrides: Sequence[str] = (),
    accelerator: str = "auto",
    jobs: int | None = None,
) -> "pd.DataFrame":
    """Train and track what is missing, as `make experiment` does, and print the same; returns the runs, as runs() does.

    names: of experiments or .toml files, or configs by name; seeds: how many, or which; dataset: by default dataset();
    overrides: `section.key=value`; jobs: runs at a time. The runs are in the current folder's mlflow.db, or on the
    server of MLFLOW_TRACKING_URI; the same call continues what was interrupted. No `if __name__ == "__main__"` is
    needed. Raises UserError if a run fails, after all others have ended.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("experiment() has to be called in the main thread: it handles Ctrl-C")
    chosen = _seeds(seeds)
    configs = _configs(names, overrides)
    import_for_workers(accelerator)
    found, fallback_reason = _find_images() if dataset is None else (dataset, "")
    from cifar_lab.execution.experiment import run_experiments
    from cifar_lab.execution.local import Pool
    from cifar_lab.tracking import frames, queries, store

    code, planned = run_experiments(configs, chosen, found, fallback_reason, Pool(accelerator, jobs))
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError("some runs failed, for the reasons above; the same call trains only what is missing")
    client = store.connect()
    finished = [run for item in planned for run in queries.finished_runs(client, item.parent)]
    return frames.runs_table(client, [run for run in finished if queries.seed_of(run) in chosen])


def runs(names: str | Sequence[str] | None = None) -> "pd.DataFrame":
    """A row per tracked run of repeats, finished or not, by default of all experiments.

    Columns: run_id, dataset, experiment, config_hash, seed, status (FINISHED if it is complete), the last value of each
    metric (`test/acc`, from 0 to 1), and each setting (`optim.learning_rate`). Runs with one config_hash are repeats.
    names: experiment names, config hashes or parent run ids. Raises UserError if there are none.
    """
    from cifar_lab.tracking import frames, store

    client = store.connect()
    return frames.runs_table(client, frames.runs_named(client, _listed(names)))


def curves(names: str | Sequence[str] | None = None) -> "pd.DataFrame":
    """A row per run and completed epoch, of the same runs as runs().

    Columns: run_id, experiment, config_hash, seed, epoch (from 1), and each metric that is logged after every epoch
    (`train/loss`, `val/acc`, ...).
    """
    from cifar_lab.tracking import frames, store

    client = store.connect()
    return frames.curves_table(client, frames.runs_named(client, _listed(names)))


def compare(names: Sequence[str], metric: str = "test/acc", margin: float = 0.0) -> "pd.DataFrame":
    """What `make compare` computes: a row per pair of experiments, first minus second, on finished runs.

    Columns: first, second, n, paired, mean, ci_low, ci_high (95 %, for another seed on these images), images_ci_low,
    images_ci_high (for another seed on other such images), p (permutation test, adjusted for the number of pairs),
    verdict. margin: a difference that does not matter, in units of the metric. Warns if seeds or environments differ.
    Raises UserError if one has no finished runs or they can't be compared.
    """
    listed = _listed(names) or []
    if len(listed) < 2:
        raise UsageError("compare() needs two or more experiments")
    if metric not in METRICS:
        raise UsageError(f"metric = {metric!r}: use {', '.join(METRICS)}")
    from cifar_lab.tracking import frames, store
    from cifar_lab.tracking.lookup import load_comparison

    comparison = load_comparison(store.connect(), listed, metric, margin)
    for line in comparison.remarks:
        warnings.warn(line, stacklevel=2)
    return frames.differences_table(comparison)


def load(model: str | None = None, *, trust: bool = False) -> "Model":
    """A trained model: a function from (n, 32, 32, 3) uint8 images to (n, classes) float32 probabilities.

    Its `classes` names the columns. model: an experiment's name (its best run by `val/acc`), the beginning of a run's
    id, or `models:/...`; by default the champion. trust: execute the network file that a run on a tracking server has,
    if networks/ here has another one; without it that raises NotTrusted. Raises UserError if there is no such model.
    """
    from cifar_lab.tracking import store
    from cifar_lab.tracking.models import load_model

    return load_model(store.connect(), model, trust)


def confusion(run: str) -> "pd.DataFrame":
    """The test images by true class (rows) and predicted class (columns), counted; run: name or id, as load() takes."""
    import pandas as pd

    from cifar_lab.tracking import models, store, summaries

    client = store.connect()
    classes, counts = summaries.load_confusion(client, models.find_trained(client, run))
    return pd.DataFrame(counts, pd.Index(classes, name="true"), pd.Index(classes, name="predicted"))


def _find_images(
    name: str = "auto", data_dir: str | Path | None = None, data_name: str | None = None
) -> "tuple[Dataset, str]":
    """A data set, and why it is a stand-in, or ""."""
    from cifar_lab.data.cache import load_dataset

    place = data_dir or os.environ.get("CIFAR_LAB_DATA")
    return load_dataset(name, Path(place) if place else None, data_name)


def _announced(found: "Dataset", fallback_reason: str) -> "Dataset":
    from cifar_lab.data.sources import not_cifar10

    if fallback_reason:
        warnings.warn(not_cifar10(fallback_reason), stacklevel=3)
    return found


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    try:
        numbers = range(min(given, MOST_SEEDS + 1)) if isinstance(given, int) else map(operator.index, given)
        seeds = tuple(numbers)
    except TypeError:
        seeds = ()
    if not are_seeds(seeds):
        raise UsageError(f"seeds = {repr(given)[:SHOWN]} is neither {SEEDS}")
    return seeds


def _listed(names: str | Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    return [experiment_name(name) for name in ([names] if isinstance(names, str) else names)]


def _configs(names: str | Sequence[str] | Mapping[str, Config], overrides: Sequence[str]) -> dict[str, Config]:
    if isinstance(names, Mapping):
        if overrides:
            raise UsageError("overrides are for experiments by name; give them to load_config()")
        return {experiment_name(name): config for name, config in names.items()}
    files = [names] if isinstance(names, str) else names
    return {name: load_config(file, overrides) for name, file in zip(experiment_names(files), files, strict=True)}
