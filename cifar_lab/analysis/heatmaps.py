"""Heatmaps of classes against classes, and of corruptions: arrays in, matplotlib Figure or pixels out."""

import functools
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cifar_lab.analysis.figures import plain

ANNOTATED = 25  # most classes for which the cells have room for numbers
SHOWN = 8  # epochs in a strip


class ConfusionPlot:
    """Heatmaps of confusion counts, rows true and columns predicted, each row as shares of its sum.

    Axes, names and colour bar are drawn once and only the cells for each heatmap, which takes a third of the time. With
    more than ANNOTATED classes the cells have no numbers, and the colours show rare errors. Lines separate the
    `superclasses`, which are named at their first class.
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
            xticklabels=[*map(plain, classes)],
            yticklabels=[
                plain(f"{superclasses[i]}: {name}" if i in firsts else name) for i, name in enumerate(classes)
            ],
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
            artist.set_animated(True)  # left out of the background
        for _ in range(2):  # long names move the axes
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def pixels(self, counts: np.ndarray, title: str) -> np.ndarray:
        """(height, width, 3) uint8 of (classes, classes) counts."""
        self._fill(counts, title)
        self.canvas.restore_region(self.background)
        for artist in *self.drawn_each_time, self.axes.title:
            self.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def figure(self, counts: np.ndarray, title: str) -> Figure:
        """The figure of (classes, classes) counts; after that, `pixels` is of no use."""
        self._fill(counts, title)
        for artist in self.drawn_each_time:
            artist.set_animated(False)
        return self.canvas.figure

    def _fill(self, counts: np.ndarray, title: str) -> None:
        shares = _shares(counts)
        self.cells.set_array(shares)
        self.axes.set_title(f"{plain(title)}\n{'percent' if self.annotated else 'share'} of each true class")
        for text, share in zip(self.axes.texts, shares.flat, strict=False):  # none if there are many classes
            text.set(text=f"{100 * share:.0f}", color="white" if share > 0.5 else "black")


def _shares(counts: np.ndarray) -> np.ndarray:
    """(classes, classes) counts with each row divided by its sum."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _square_figure(classes: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 7) if classes <= ANNOTATED else (18, 14), layout="constrained")
    return figure, figure.add_subplot()


def _turn_labels(axes: Axes, classes: int) -> None:
    axes.tick_params(axis="x", rotation=45 if classes <= ANNOTATED else 90)
    axes.tick_params(axis="y", rotation=0)
    if classes > ANNOTATED:
        axes.tick_params(labelsize=8)


confusion_plot = functools.cache(ConfusionPlot)  # drawn once per process


def plot_confusion(
    counts: ArrayLike, classes: Sequence[str], title: str = "confusion", superclasses: Sequence[str] = ()
) -> Figure:
    """Heatmap of (classes, classes) counts, rows true and columns predicted, each row as shares of its sum."""
    return ConfusionPlot(classes, superclasses).figure(np.asarray(counts), title)


def plot_epochs(counts: Sequence[np.ndarray], classes: int) -> Figure:
    """A strip of small heatmaps, one per epoch, at most SHOWN; counts: (classes, classes) by epoch."""
    shown = np.unique(np.linspace(0, len(counts) - 1, SHOWN).round().astype(int))
    figure = Figure(figsize=(SHOWN, 1.1))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, without a layout: several times as fast
    axes.set_axis_off()
    norm = PowerNorm(1 if classes <= ANNOTATED else 0.5, 0, 1)
    for place, index in enumerate(shown):
        axes.imshow(_shares(counts[index]), cmap="Blues", norm=norm, extent=(place, place + 0.94, 0, 0.94))
        axes.text(place + 0.47, 0.98, f"epoch {index + 1}", fontsize=7, horizontalalignment="center")
    axes.set(xlim=(-0.03, SHOWN - 0.03), ylim=(-0.03, 1.07))
    return figure


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
        xticklabels=[*map(plain, classes[:-1])],
        yticklabels=[*map(plain, classes[1:])],
        cbar_kws={"label": "accuracy on the images of the two classes, percent"},
        ax=axes,
    )
    axes.set_title(plain(title))
    _turn_labels(axes, len(classes))
    return figure


def plot_corruptions(accuracies: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Heatmap of (names, strengths) accuracies, with their means in the last row and column."""
    table = np.pad(accuracies, (0, 1), constant_values=np.nan)
    table[:-1, -1], table[-1, :-1], table[-1, -1] = accuracies.mean(axis=1), accuracies.mean(axis=0), accuracies.mean()
    rows, columns = accuracies.shape
    figure = Figure(figsize=(7.5, 1.8 + 0.36 * rows), layout="constrained")
    axes = figure.add_subplot()
    sns.heatmap(
        100 * table,
        vmin=0,
        vmax=100,
        cmap="viridis",
        annot=True,
        fmt=".1f",
        xticklabels=[*map(str, range(1, columns + 1)), "mean"],
        yticklabels=[*(name.replace("_", " ") for name in names), "mean"],
        cbar_kws={"label": "accuracy, percent"},
        ax=axes,
    )
    axes.axhline(rows, color="white", linewidth=3)
    axes.axvline(columns, color="white", linewidth=3)
    axes.set(xlabel="strength")
    axes.set_title(plain(title), fontsize="medium")
    axes.tick_params(axis="y", rotation=0)
    return figure
