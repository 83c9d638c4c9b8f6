"""Arrays in, matplotlib Figure out. Nothing here shows, saves or computes what was learned."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Heatmap of (classes, classes) counts, rows true and columns predicted, each row as shares of its sum."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    sns.heatmap(
        shares,
        vmin=0,
        vmax=1,
        cmap="Blues",
        annot=np.round(100 * shares).astype(int),
        fmt="d",
        square=True,
        xticklabels=classes,
        yticklabels=classes,
        cbar_kws={"label": "share of the true class"},
        ax=axes,
    )
    axes.set(title=f"{title}\npercent of each true class", xlabel="predicted", ylabel="true")
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)
    return figure


def plot_learning_curves(curves: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Loss and accuracy over completed epochs.

    curves: of each line's name ("train", "val") its metrics "loss" and "acc", (epochs,) or (seeds, epochs); of several
    seeds each is drawn thin and their mean thick.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        for color, (name, metrics) in zip(sns.color_palette("colorblind"), curves.items(), strict=False):
            values = np.atleast_2d(metrics[metric])
            epochs = np.arange(1, values.shape[1] + 1)
            if len(values) > 1:
                axes.plot(epochs, values.T, color=color, linewidth=0.7, alpha=0.5)
            label = f"{name}, mean of {len(values)}" if len(values) > 1 else name
            axes.plot(epochs, values.mean(axis=0), color=color, linewidth=2, label=label)
        axes.set(xlabel="completed epochs", ylabel="cross-entropy" if metric == "loss" else "accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def to_pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3) uint8 of a drawn figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
