"""Arrays in, matplotlib Figure out. Nothing here shows or saves a figure."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from cifar_lab.analysis.calibration import Reliability
from cifar_lab.analysis.comparison import Summary, summarise


def plain(text: str) -> str:
    """`text` with dollars escaped: matplotlib would typeset what stands between two of them as a formula."""
    return text.replace("$", r"\$")


def plot_samples(images: np.ndarray, classes: Sequence[str]) -> Figure:
    """A row of images for each class; images: (classes, columns, 32, 32, 3) uint8."""
    rows, columns = images.shape[:2]
    sheet = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(34 * rows, 34 * columns, 3)
    names = max(2, 0.5 + 0.08 * max(map(len, classes)))  # inches
    figure = Figure(figsize=(0.5 * columns + names, 0.5 * rows + 0.2), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set(xticks=[], yticks=34 * np.arange(rows) + 17, yticklabels=[*map(plain, classes)], anchor="E")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_learning_curves(curves: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Cross-entropy and accuracy over completed epochs.

    curves: by line ("train", "val") the metrics "cross_entropy", or "loss" if that is the same, and "acc", (epochs,) or
    (seeds, epochs). Several seeds are drawn as thin lines, their mean as a thick one.
    """
    figure = Figure(figsize=(10, 4))
    figure.suptitle(plain(title))
    margins = {"left": 0.07, "right": 0.985, "bottom": 0.13, "top": 0.9}  # fixed: a layout takes as long as the drawing
    for axes, metric in zip(figure.subplots(1, 2, gridspec_kw=margins), ("loss", "acc"), strict=True):
        for color, (name, metrics) in zip(sns.color_palette("colorblind"), curves.items(), strict=False):
            values = np.atleast_2d(metrics["acc"] if metric == "acc" else metrics.get("cross_entropy", metrics["loss"]))
            epochs = np.arange(1, values.shape[1] + 1)
            if len(values) > 1:
                axes.plot(epochs, values.T, color=color, linewidth=0.7, alpha=0.5)
            label = f"{name}, mean of {len(values)}" if len(values) > 1 else name
            axes.plot(epochs, values.mean(axis=0), color=color, linewidth=2, label=plain(label))
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
    """plot_seeds of `metric` beside plot_bands of `curve`."""
    figure = Figure(figsize=(11, 1.5 + 1.1 * max(3, len(values))), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    _draw_seeds(left, values, summaries, metric)
    _draw_bands(right, curves, curve)
    return figure


def plot_seeds(values: Mapping[str, np.ndarray], summaries: Sequence[Summary], metric: str) -> Figure:
    """One dot per seed with mean and 95 % interval; values: (seeds,) of `metric` by name.

    Sets that are too far apart to show their spreads on one axis get one axis each, all of the same length.
    """
    figure = Figure(figsize=(6, 1 + 1.1 * max(2, len(values))), layout="constrained")
    _draw_seeds(figure, values, summaries, metric)
    return figure


def plot_bands(curves: Mapping[str, np.ndarray], curve: str) -> Figure:
    """Mean over seeds with a band of one standard deviation; curves: (seeds, epochs) of the metric `curve` by name."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw_bands(figure, curves, curve)
    return figure


def plot_curve(panels: Mapping[str, Mapping[str, Mapping[float | str, np.ndarray]]], key: str) -> Figure:
    """Accuracy over the values of the setting `key`: means with 95 % intervals, and a dot per seed.

    panels: by the accuracy's name and line the accuracies, (seeds,) by value. Positive numbers that span more than a
    factor of 10 get a logarithmic axis; unless all values are numbers, they are categories in the order given.
    """
    values = [*dict.fromkeys(value for lines in panels.values() for line in lines.values() for value in line)]
    numbers = all(not isinstance(value, str) for value in values)
    figure = Figure(figsize=(1 + 5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for line, (name, color) in enumerate(zip(lines, sns.color_palette("colorblind", len(lines)), strict=True)):
            shift = 0.15 * (line - (len(lines) - 1) / 2)
            where = {value: float(value) if numbers else place + shift for place, value in enumerate(values)}
            points = {where[value]: accuracies for value, accuracies in lines[name].items()}
            _draw_points(axes, points, name, color, "-" if numbers else "")
        axes.set(title=title, xlabel=plain(key))
        _set_values(axes, values, numbers)
        axes.grid(alpha=0.3)
    low, high = all_axes[0].get_ylim()
    all_axes[0].set(ylim=(max(low, -0.02), min(high, 1.02)), ylabel="mean and 95 % interval, a dot per seed")
    if len(all_axes[0].containers) > 1:
        all_axes[0].legend()
    return figure


def _draw_points(axes: Axes, points: Mapping[float, np.ndarray], name: str, color: object, line: str) -> None:
    where = np.array(sorted(points))
    summaries = [summarise(points[x]) for x in where]
    mean = np.array([summary.mean for summary in summaries])
    half = [0.0 if summary.n == 1 else summary.ci_high - summary.mean for summary in summaries]
    label = plain(name)
    axes.errorbar(where, mean, half, color=color, linestyle=line, marker="D", markersize=5, capsize=5, label=label)
    for x in where:
        seeds = points[x]
        axes.plot(np.full(len(seeds), x), seeds, "o", color="black", alpha=0.6, markersize=2.5, zorder=3)


def _set_values(axes: Axes, values: Sequence[float | str], numbers: bool) -> None:
    """Scale and ticks of the x axis: a tick per value, with a label unless it is too near to the one before."""
    if not numbers:
        texts = [plain(str(value)) for value in values]
        axes.set_xticks(range(len(values)), texts)
        if len("  ".join(texts)) > 50:
            axes.tick_params(axis="x", labelrotation=20)
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    ticks = np.array(sorted(values), dtype=float)
    logarithmic = ticks[0] > 0 and ticks[-1] > 10 * ticks[0]
    axes.set_xscale("log" if logarithmic else "linear")
    places = np.log(ticks) if logarithmic else ticks
    labels, last = [], -np.inf
    for tick, place in zip(ticks, places, strict=True):
        far = place - last >= 0.09 * (places[-1] - places[0])
        labels.append(f"{tick:,g}" if far else "")
        last = place if far else last
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)


def plot_reliability(sets: Mapping[str, Reliability]) -> Figure:
    """Reliability diagram: accuracy over confidence, a line by name; the diagonal is perfect calibration."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", label="perfect")
    for (name, found), color, marker in zip(
        sets.items(), sns.color_palette("colorblind", len(sets)), itertools.cycle("os^Dv"), strict=False
    ):
        full = found.counts > 0
        label = f"{name}, ECE {100 * found.ece:.1f} %"
        axes.plot(found.confidence[full], found.accuracy[full], color=color, marker=marker, label=plain(label))
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _draw_seeds(
    figure: FigureBase, values: Mapping[str, np.ndarray], summaries: Sequence[Summary], metric: str
) -> None:
    colors = sns.color_palette("colorblind", len(values))
    bounds = [_dot_bounds(values[name], summary) for name, summary in zip(values, summaries, strict=True)]
    length = 1.1 * max(high - low for low, high in bounds)
    apart = max(high for _, high in bounds) - min(low for low, _ in bounds) > 4 * length
    panels = figure.subplots(len(values), 1, squeeze=False, sharex=not apart)[:, 0]
    for axes, (name, seeds), summary, (low, high), color in zip(
        panels, values.items(), summaries, bounds, colors, strict=True
    ):
        axes.plot(seeds, np.zeros(len(seeds)), "o", color=color, alpha=0.6)
        if summary.n > 1:
            axes.plot([summary.ci_low, summary.ci_high], [0.5, 0.5], color="black", linewidth=2)
        axes.plot(summary.mean, 0.5, "D", color="black")
        axes.set(ylim=(-0.6, 1.1), yticks=[])
        axes.set_title(plain(f"{name}, n = {summary.n}"), loc="left", fontsize="medium")
        if apart:
            axes.set_xlim((low + high - length) / 2, (low + high + length) / 2)
        axes.grid(axis="x", alpha=0.3)
    own = "\neach axis has its own origin, all have the same scale" if apart else ""
    panels[-1].set_xlabel(f"{metric}: a dot per seed, mean and 95 % interval{own}")


def _draw_bands(figure: FigureBase, curves: Mapping[str, np.ndarray], curve: str) -> None:
    axes = figure.subplots()
    for (name, seeds), color in zip(curves.items(), sns.color_palette("colorblind", len(curves)), strict=True):
        epochs, mean = np.arange(1, seeds.shape[1] + 1), seeds.mean(axis=0)
        axes.plot(epochs, mean, color=color, label=plain(name))
        if len(seeds) > 1:
            std = seeds.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.25)
    axes.set(xlabel="completed epochs", ylabel=f"{curve}, mean over seeds, band of one std")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _dot_bounds(seeds: np.ndarray, summary: Summary) -> tuple[float, float]:
    shown = [*seeds, summary.ci_low, summary.ci_high] if summary.n > 1 else [*seeds - 0.005, *seeds + 0.005]
    return float(np.min(shown)), float(np.max(shown))
