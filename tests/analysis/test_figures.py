import numpy as np
import pytest
from matplotlib import colormaps

from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.figures import plot_comparison, plot_curve, plot_learning_curves, plot_samples
from cifar_lab.analysis.heatmaps import ConfusionPlot, plot_confusion, plot_corruptions, plot_epochs, plot_pairs
from cifar_lab.data.catalogue import CIFAR100

COUNTS = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])


def test_heatmap_shows_row_percentages_and_class_names():
    plot = ConfusionPlot(["cat", "dog", "ship"])
    plot.pixels(COUNTS, "test")
    axes = plot.axes
    assert [text.get_text() for text in axes.texts] == ["80", "20", "0", "25", "75", "0", "0", "0", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "ship"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_heatmap_does_not_show_the_one_before():
    plot = ConfusionPlot(["cat", "dog", "ship"])
    plot.pixels(COUNTS.T, "another")
    pixels = plot.pixels(COUNTS, "test")
    np.testing.assert_array_equal(pixels, ConfusionPlot(["cat", "dog", "ship"]).pixels(COUNTS, "test"))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_heatmap_as_a_figure_has_its_cells_and_numbers():
    figure = plot_confusion(COUNTS.tolist(), ["cat", "dog", "ship"], "test")
    figure.canvas.draw()
    axes, pixels = figure.axes[0], np.asarray(figure.canvas.buffer_rgba())
    assert [text.get_text() for text in axes.texts][:5] == ["80", "20", "0", "25", "75"]
    for row, column, share in (0, 0, 0.8), (0, 1, 0.2), (1, 1, 0.75), (2, 2, 0):
        x, y = axes.transData.transform((column + 0.1, row + 0.1)).astype(int)
        assert pixels[-y, x] == pytest.approx(255 * np.array(colormaps["Blues"](share)), abs=2)


@pytest.mark.parametrize("columns", [1, 10])
@pytest.mark.parametrize("name", ["cat", "automobile: predicted automobile, 100%"])
def test_names_beside_images_are_whole(name, columns):
    figure = plot_samples(np.zeros((6, columns, 32, 32, 3), np.uint8), [name] * 6)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert all(label.get_window_extent().x0 >= 0 for label in axes.get_yticklabels())
    assert axes.get_window_extent().height / 6 == pytest.approx(50, abs=5)  # pixels of an image


def test_many_classes_are_parted_by_superclass_and_have_no_numbers():
    plot = ConfusionPlot(CIFAR100.classes, CIFAR100.superclasses)
    plot.pixels(np.eye(100), "test")
    assert not plot.axes.texts
    names = [label.get_text() for label in plot.axes.get_yticklabels()]
    assert len(names) == 100
    assert [name for name in names if ":" in name][:2] == ["aquatic_mammals: beaver", "fish: aquarium_fish"]
    lines = sorted({float(line.get_ydata()[0]) for line in plot.axes.lines if line.get_ydata()[0] > 1})
    assert lines == [5.0 * i for i in range(1, 20)]


@pytest.mark.parametrize(("epochs", "shown"), [(1, [1]), (3, [1, 2, 3]), (16, [1, 3, 5, 7, 10, 12, 14, 16])])
def test_a_strip_shows_all_epochs_or_some_of_many_with_the_first_and_the_last(epochs, shown):
    counts = [np.array([[4, 0], [epoch, epoch]]) for epoch in range(epochs)]
    (axes,) = plot_epochs(counts, 2).axes
    assert [text.get_text() for text in axes.texts] == [f"epoch {number}" for number in shown]
    assert len(axes.images) == len(shown)
    cells = axes.images[-1].get_array().tolist()
    assert cells == [[1, 0], [0.5, 0.5] if epochs > 1 else [0, 0]]  # of a class without images there is no share


def test_each_pair_has_one_cell_with_its_accuracy():
    axes = plot_pairs(np.array([0.9, 0.8, 0.615]), ["cat", "dog", "ship"], "pairs").axes[0]
    rows, columns = (
        [label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    shown = {
        (rows[int(text.get_position()[1])], columns[int(text.get_position()[0])]): text.get_text()
        for text in axes.texts
    }
    assert shown == {("dog", "cat"): "90.0", ("ship", "cat"): "80.0", ("ship", "dog"): "61.5"}


def test_curves_of_one_run_start_at_epoch_one():
    losses = {"loss": np.array([3.0, 2.5]), "cross_entropy": np.array([2.0, 1.0])}
    loss, accuracy = plot_learning_curves({"train": {**losses, "acc": np.array([0.2, 0.6])}}, "run").axes
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (loss, accuracy)]
    assert [legend[0] for legend in legends] == ["train", "train"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.6]]


def test_curves_of_several_seeds_end_with_their_mean():
    values = np.array([[0.2, 0.4], [0.4, 0.8]])
    axes = plot_learning_curves({"val": {"loss": values, "acc": values}}, "repeats").axes[1]
    assert len(axes.lines) == 3
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [0.3, 0.6])
    assert axes.lines[2].get_label() == "val, mean of 2"


@pytest.mark.parametrize(("second", "apart"), [([0.42, 0.43, 0.44], False), ([0.8, 0.81, 0.83], True)])
def test_comparison_has_a_dot_per_seed_the_interval_and_a_band(second, apart):
    values = {"a": np.array([0.4, 0.41, 0.43]), "b": np.array(second)}
    curves = {name: np.stack([seeds - 0.1, seeds], axis=1) for name, seeds in values.items()}
    summaries = [summarise(seeds) for seeds in values.values()]
    *panels, right = plot_comparison(values, summaries, curves, "test/acc", "val/acc").axes
    for axes, seeds, summary in zip(panels, values.values(), summaries, strict=True):
        dots, interval, mean = axes.lines
        assert dots.get_xdata().tolist() == seeds.tolist()
        assert interval.get_xdata().tolist() == [summary.ci_low, summary.ci_high]
        assert mean.get_xdata().tolist() == [summary.mean]
        low, high = axes.get_xlim()
        assert low < min(*seeds, summary.ci_low) < max(*seeds, summary.ci_high) < high
    limits = [np.subtract(*axes.get_xlim()) for axes in panels]
    assert limits[0] == pytest.approx(limits[1])  # the same scale
    assert (panels[0].get_xlim() != panels[1].get_xlim()) == apart
    assert right.get_ylabel().startswith("val/acc, mean")
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 0.31333], [2, 0.41333]], atol=1e-4)
    band = right.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - 0.41333 == pytest.approx(values["a"].std(ddof=1), abs=1e-4)


def test_a_curve_has_a_mean_an_interval_and_a_dot_per_seed_for_each_value():
    values = {45000: np.array([0.8, 0.9]), 1000: np.array([0.5, 0.6, 0.7]), 5000: np.array([0.75])}
    axes = plot_curve({"test accuracy": {"cnn": values}}, "data.train_size").axes[0]
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [
        [1000, pytest.approx(0.6)],
        [5000, 0.75],
        [45000, pytest.approx(0.85)],
    ]
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    for (low, high), seeds in zip(ends, ([0.5, 0.6, 0.7], None, [0.8, 0.9]), strict=True):
        summary = summarise(seeds) if seeds else None
        assert [low, high] == pytest.approx([summary.ci_low, summary.ci_high] if summary else [0.75, 0.75])
    dots = [tuple(point) for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata().tolist()]
    assert sorted(dots) == [(1000, 0.5), (1000, 0.6), (1000, 0.7), (5000, 0.75), (45000, 0.8), (45000, 0.9)]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,000", "5,000", "45,000"]


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([1, 10], "linear", ["1", "10"]),
        ([0.1, 1.5], "log", ["0.1", "1.5"]),
        ([0, 100], "linear", ["0", "100"]),
        ([100, 1, 2, 0], "linear", ["0", "", "", "100"]),
        (["[16,24]", "[8]"], "linear", ["[16,24]", "[8]"]),
    ],
)
def test_the_axis_of_a_curve_fits_its_values(values, scale, ticks):
    accuracies = {value: np.array([0.5, 0.6]) for value in values}
    figure = plot_curve(
        {"validation accuracy": {"a": accuracies, "b": accuracies}, "test accuracy": {"a": accuracies}}, "x.y"
    )
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    places = [bars.lines[0].get_xdata() for bars in axes.containers]
    assert (places[0] == places[1]).all() == (not isinstance(values[0], str))  # categories stand side by side


def test_corruptions_are_drawn_with_their_means():
    (axes, _) = plot_corruptions(np.array([[0.9, 0.5], [0.6, 0.2]]), ["fog", "shot_noise"], "cnn, $5").axes
    assert [text.get_text() for text in axes.texts] == [
        "90.0",
        "50.0",
        "70.0",
        "60.0",
        "20.0",
        "40.0",
        "75.0",
        "35.0",
        "55.0",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fog", "shot noise", "mean"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "mean"]
    assert axes.get_title() == r"cnn, \$5"
