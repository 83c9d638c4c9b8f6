import numpy as np
import pytest
import torch
from torch import nn

from cifar_lab.config import OptimConfig
from cifar_lab.models import CNN, LogisticRegression, Probabilities

COMMON = (OptimConfig(), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 10)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))


def test_pixels_are_normalised_per_channel(images):
    expected = (images.numpy() / 255 - (0.5, 0.4, 0.3)) / (0.1, 0.2, 0.3)
    np.testing.assert_allclose(LogisticRegression(*COMMON).normalise(images), expected, rtol=1e-5, atol=1e-5)


def test_logistic_regression_is_one_linear_map(images):
    model = LogisticRegression(*COMMON)
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    expected = model.normalise(images).numpy().reshape(5, -1) @ weight.T + bias
    np.testing.assert_allclose(model(images).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "depth"), [(4, 1), (6, 3)])
def test_width_and_depth_shape_the_cnn(images, width, depth):
    model = CNN(*COMMON, width=width, depth=depth)
    channels = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert channels == [width] * depth + [2 * width] * depth + [4 * width] * depth
    assert model(images).shape == (5, 10)


def test_loss_and_confusion_of_four_rows_worked_by_hand():
    model = LogisticRegression(OptimConfig(label_smoothing=0.5), (0.5,) * 3, (0.5,) * 3, 2)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([1.0, 3.0]).log()  # every image: class 1 with probability 3/4
    images, labels = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1, 1, 1])
    model.start_stage("val")
    loss = model.step((images, labels), "val")
    assert loss.item() == pytest.approx(-(np.log(0.25) + 3 * np.log(0.75)) / 4)
    assert model.confusion["val"].tolist() == [[0, 1], [0, 3]]
    model.start_stage("train")
    smoothed = model.step((images, labels), "train")  # smoothing 0.5 over two classes: target 3/4, the other 1/4
    low, high = -np.log(0.25), -np.log(0.75)
    assert smoothed.item() == pytest.approx(((0.75 * low + 0.25 * high) + 3 * (0.75 * high + 0.25 * low)) / 4)


def test_served_probabilities_are_the_softmax_of_the_logits(images):
    model = CNN(*COMMON, width=4).eval()
    probabilities = Probabilities(model).eval()(images)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities, model(images).softmax(1))
