import numpy as np

from cifar_lab.figures import plot_confusion, plot_learning_curves, to_pixels

COUNTS = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])


def test_heatmap_shows_row_percentages_and_class_names():
    axes = plot_confusion(COUNTS, ["cat", "dog", "ship"], "test").axes[0]
    assert [text.get_text() for text in axes.texts] == ["80", "20", "0", "25", "75", "0", "0", "0", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "ship"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_pixels_are_drawn():
    pixels = to_pixels(plot_confusion(COUNTS, ["cat", "dog", "ship"], "test"))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_curves_of_one_run_start_at_epoch_one():
    curves = {"train": {"loss": np.array([2.0, 1.0]), "acc": np.array([0.2, 0.6])}}
    loss, accuracy = plot_learning_curves(curves, "run").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.6]]


def test_curves_of_several_seeds_end_with_their_mean():
    values = np.array([[0.2, 0.4], [0.4, 0.8]])
    axes = plot_learning_curves({"val": {"loss": values, "acc": values}}, "repeats").axes[1]
    assert len(axes.lines) == 3
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [0.3, 0.6])
    assert axes.lines[2].get_label() == "val, mean of 2"
