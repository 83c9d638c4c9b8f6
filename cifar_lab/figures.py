"""Arrays in, matplotlib Figure or pixels out. Nothing here shows, saves or computes what was learned."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_lab.comparison import Summary

ANNOTATED = 25  # classes; with more there is no room for numbers in the cells


class ConfusionPlot:
    """Heatmaps of confusion counts, rows true and columns predicted, each row as shares of its sum.

    Axes, names and colour bar are laid out and drawn once, the cells for each heatmap: a third of the time.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        figure = Figure(figsize=(8, 7), layout="constrained")
        self.canvas = FigureCanvasAgg(figure)
        self.axes = figure.add_subplot()
        sns.heatmap(
            np.zeros((len(classes), len(classes))),
            vmin=0,
            vmax=1,
            cmap="Blues",
            annot=True,
            square=True,
            xticklabels=classes,
            yticklabels=classes,
            cbar_kws={"label": "share of the true class"},
            ax=self.axes,
        )
        self.axes.set(title="\n", xlabel="predicted", ylabel="true")
        self.axes.tick_params(axis="x", rotation=45)
        self.axes.tick_params(axis="y", rotation=0)
        self.cells = self.axes.collections[0]
        for artist in self.cells, *self.axes.texts:
            artist.set_animated(True)  # not drawn with the rest
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def pixels(self, counts: np.ndarray, title: str) -> np.ndarray:
        """(700, 800, 3) uint8 of (classes, classes) counts."""
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        self.canvas.restore_region(self.background)
        self.cells.set_array(shares)
        self.axes.set_title(f"{title}\npercent of each true class")
        for text, share in zip(self.axes.texts, shares.flat, strict=True):
            text.set(text=f"{100 * share:.0f}", color="white" if share > 0.5 else "black")
        for artist in self.cells, self.axes.title, *self.axes.texts:
            self.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


confusion_plot = functools.cache(ConfusionPlot)  # the same one for the runs of a process, which come one by one


def plot_pairs(accuracies: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Heatmap of the accuracy on each pair of classes; accuracies: (pairs,), pairs as in itertools.combinations."""
    matrix = np.full((len(classes), len(classes)), np.nan)
    first, second = np.triu_indices(len(classes), 1)
    matrix[second, first] = accuracies
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    sns.heatmap(
        100 * matrix[1:, :-1],
        cmap="rocket",
        annot=len(classes) <= ANNOTATED,
        fmt=".1f",
        square=True,
        xticklabels=classes[:-1],
        yticklabels=classes[1:],
        cbar_kws={"label": "accuracy on the images of the two classes, percent"},
        ax=axes,
    )
    axes.set_title(title)
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


def plot_comparison(
    values: Mapping[str, np.ndarray],
    summaries: Sequence[Summary],
    curves: Mapping[str, np.ndarray],
    metric: str,
    curve: str,
) -> Figure:
    """One dot per seed with mean and 95 % interval, and a curve over epochs with a band of one std.

    values: (seeds,) of `metric` by name; curves: (seeds, epochs) of the metric `curve`. Where the sets lie so far apart
    that their spreads would not be seen, each has an axis of its own, all of the same length.
    """
    figure = Figure(figsize=(11, 1.5 + 1.1 * max(3, len(values))), layout="constrained")
    left, right = figure.subfigures(1, 2)
    colors = sns.color_palette("colorblind", len(values))
    bounds = [_dot_bounds(values[name], summary) for name, summary in zip(values, summaries, strict=True)]
    length = 1.1 * max(high - low for low, high in bounds)
    apart = max(high for _, high in bounds) - min(low for low, _ in bounds) > 4 * length
    panels = left.subplots(len(values), 1, squeeze=False, sharex=not apart)[:, 0]
    for axes, (name, seeds), summary, (low, high), color in zip(
        panels, values.items(), summaries, bounds, colors, strict=True
    ):
        axes.plot(seeds, np.zeros(len(seeds)), "o", color=color, alpha=0.6)
        if summary.n > 1:
            axes.plot([summary.ci_low, summary.ci_high], [0.5, 0.5], color="black", linewidth=2)
        axes.plot(summary.mean, 0.5, "D", color="black")
        axes.set(ylim=(-0.6, 1.1), yticks=[], ylabel=f"{name}\nn = {summary.n}")
        if apart:
            axes.set_xlim((low + high - length) / 2, (low + high + length) / 2)
        axes.grid(axis="x", alpha=0.3)
    own = "\neach axis has its own origin, all have the same scale" if apart else ""
    panels[-1].set_xlabel(f"{metric}: a dot per seed, mean and 95 % interval{own}")
    axes = right.subplots()
    for (name, seeds), color in zip(curves.items(), colors, strict=True):
        epochs, mean = np.arange(1, seeds.shape[1] + 1), seeds.mean(axis=0)
        axes.plot(epochs, mean, color=color, label=name)
        if len(seeds) > 1:
            std = seeds.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.25)
    axes.set(xlabel="completed epochs", ylabel=f"{curve}, mean over seeds, band of one std")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _dot_bounds(seeds: np.ndarray, summary: Summary) -> tuple[float, float]:
    shown = [*seeds, summary.ci_low, summary.ci_high] if summary.n > 1 else [*seeds - 0.005, *seeds + 0.005]
    return float(np.min(shown)), float(np.max(shown))
