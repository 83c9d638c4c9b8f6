"""Arrays in, matplotlib Figure or pixels out. Nothing here shows, saves or computes what was learned."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_lab.comparison import Summary

ANNOTATED = 25  # classes; with more there is no room for numbers in the cells


class ConfusionPlot:
    """Heatmaps of confusion counts, rows true and columns predicted, each row as shares of its sum.

    Axes, names and colour bar are laid out and drawn once, the cells for each heatmap: a third of the time. Of many
    classes the cells have no numbers, but colours that show rare errors; lines separate the `superclasses`, which are
    named at their first class.
    """

    def __init__(self, classes: Sequence[str], superclasses: Sequence[str] = ()) -> None:
        self.annotated = len(classes) <= ANNOTATED
        figure, self.axes = _square_figure(len(classes))
        self.canvas = FigureCanvasAgg(figure)
        firsts = [i for i, name in enumerate(superclasses) if i == 0 or name != superclasses[i - 1]]
        sns.heatmap(
            np.zeros((len(classes), len(classes))),
            norm=PowerNorm(1 if self.annotated else 0.5, 0, 1),
            cmap="Blues",
            annot=self.annotated,
            square=True,
            xticklabels=classes,
            yticklabels=[f"{superclasses[i]}: {name}" if i in firsts else name for i, name in enumerate(classes)],
            cbar_kws={"label": "share of the true class", "shrink": 0.7},
            ax=self.axes,
        )
        self.axes.set(title="\n", xlabel="predicted", ylabel="true")
        _turn_labels(self.axes, len(classes))
        self.cells = self.axes.collections[0]
        lines = [
            draw(i, color="gray", linewidth=0.5) for i in firsts for draw in (self.axes.axhline, self.axes.axvline)
        ]
        self.drawn_each_time = [self.cells, *lines, *self.axes.texts]
        for artist in self.drawn_each_time:
            artist.set_animated(True)  # not drawn with the rest
        for _ in range(2):  # long names move the axes
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def pixels(self, counts: np.ndarray, title: str) -> np.ndarray:
        """(height, width, 3) uint8 of (classes, classes) counts."""
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        self.canvas.restore_region(self.background)
        self.cells.set_array(shares)
        self.axes.set_title(f"{title}\n{'percent' if self.annotated else 'share'} of each true class")
        for text, share in zip(self.axes.texts, shares.flat, strict=False):  # there are none of many classes
            text.set(text=f"{100 * share:.0f}", color="white" if share > 0.5 else "black")
        for artist in *self.drawn_each_time, self.axes.title:
            self.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def _square_figure(classes: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 7) if classes <= ANNOTATED else (18, 14), layout="constrained")
    return figure, figure.add_subplot()


def _turn_labels(axes: Axes, classes: int) -> None:
    axes.tick_params(axis="x", rotation=45 if classes <= ANNOTATED else 90)
    axes.tick_params(axis="y", rotation=0)
    if classes > ANNOTATED:
        axes.tick_params(labelsize=8)


confusion_plot = functools.cache(ConfusionPlot)  # the same one for the runs of a process, which come one by one


def plot_pairs(accuracies: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Heatmap of the accuracy on each pair of classes; accuracies: (pairs,), pairs as in itertools.combinations."""
    matrix = np.full((len(classes), len(classes)), np.nan)
    first, second = np.triu_indices(len(classes), 1)
    matrix[second, first] = accuracies
    figure, axes = _square_figure(len(classes))
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
    _turn_labels(axes, len(classes))
    return figure


def plot_samples(images: np.ndarray, classes: Sequence[str]) -> Figure:
    """A row of images for each class; images: (classes, columns, 32, 32, 3) uint8."""
    rows, columns = images.shape[:2]
    sheet = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(34 * rows, 34 * columns, 3)
    figure = Figure(figsize=(0.5 * columns + 2, 0.5 * rows + 0.2), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set(xticks=[], yticks=34 * np.arange(rows) + 17, yticklabels=classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
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
