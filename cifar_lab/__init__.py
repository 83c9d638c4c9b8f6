"""Experiment-tracked research on CIFAR-10: seeded repeats, honest comparisons, one best run.

The names in `__all__` are the stable surface; docs/guide.md describes it. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_lab.analysis.calibration import reliability
    from cifar_lab.analysis.comparison import summarise
    from cifar_lab.analysis.figures import (
        plot_bands,
        plot_comparison,
        plot_learning_curves,
        plot_reliability,
        plot_samples,
        plot_seeds,
    )
    from cifar_lab.analysis.heatmaps import plot_confusion, plot_epochs, plot_pairs
    from cifar_lab.api import compare, confusion, curves, dataset, experiment, load, runs, train
    from cifar_lab.config import Config, load_config
    from cifar_lab.data.cache import Dataset
    from cifar_lab.errors import UsageError, UserError
    from cifar_lab.tracking.load import NotTrusted
    from cifar_lab.tracking.models import Model
    from cifar_lab.training.train import Result

__all__ = [
    "Config",
    "Dataset",
    "Model",
    "NotTrusted",
    "Result",
    "UsageError",
    "UserError",
    "compare",
    "confusion",
    "curves",
    "dataset",
    "experiment",
    "load",
    "load_config",
    "plot_bands",
    "plot_comparison",
    "plot_confusion",
    "plot_epochs",
    "plot_learning_curves",
    "plot_pairs",
    "plot_reliability",
    "plot_samples",
    "plot_seeds",
    "reliability",
    "runs",
    "summarise",
    "train",
]

_NAMES = {
    "analysis.calibration": ("reliability",),
    "analysis.comparison": ("summarise",),
    "analysis.figures": (
        "plot_bands",
        "plot_comparison",
        "plot_learning_curves",
        "plot_reliability",
        "plot_samples",
        "plot_seeds",
    ),
    "analysis.heatmaps": ("plot_confusion", "plot_epochs", "plot_pairs"),
    "api": ("compare", "confusion", "curves", "dataset", "experiment", "load", "runs", "train"),
    "config": ("Config", "load_config"),
    "data.cache": ("Dataset",),
    "errors": ("UsageError", "UserError"),
    "tracking.load": ("NotTrusted",),
    "tracking.models": ("Model",),
    "training.train": ("Result",),
}
_MODULE = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULE[name]), name)
        return value


def __dir__() -> list[str]:
    return __all__
