from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EXPERIMENTS
from torch import nn

from cifar_lab.config import Config, load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.data.selection import split_train
from cifar_lab.errors import UsageError
from cifar_lab.networks.build import Predictor, check_network, make_model, make_network
from cifar_lab.networks.cnn import identity_convolution, whitening_filters
from cifar_lab.sections import MuonConfig
from cifar_lab.training.augmentation import resize
from cifar_lab.training.train import resolve_config

COLOURS = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)  # mean and std


def network(kind, **settings):
    return make_network(Config(model={"kind": kind, **settings}), 10, *COLOURS)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))


def test_pixels_are_normalised_per_channel(images):
    expected = (images.numpy() / 255 - (0.5, 0.4, 0.3)) / (0.1, 0.2, 0.3)
    np.testing.assert_allclose(network("linear").normalise(images), expected, rtol=1e-5, atol=1e-5)


def test_logistic_regression_is_one_linear_map(images):
    model = network("linear")
    weight, bias = model.network.head.weight.detach().numpy(), model.network.head.bias.detach().numpy()
    expected = model.normalise(images).numpy().reshape(5, -1) @ weight.T + bias
    np.testing.assert_allclose(model(images).detach(), expected, rtol=1e-4, atol=1e-4)


def test_the_linear_network_normalises_its_weights_in_place_of_the_pixels(images):
    model = network("linear")
    scores = model.network(model.normalise(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(model.scores(images), scores, rtol=1e-4, atol=1e-4)


def test_the_resnet_is_that_of_the_paper():
    for depth, parameters in ((20, 0.27), (32, 0.46), (56, 0.85)):  # millions: table 6
        model = network("resnet", depth=depth)
        assert sum(p.numel() for p in model.network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth
    with pytest.raises(ValueError, match=r"model\.depth = 21: a residual network has 6n"):
        network("resnet", depth=21)


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "squeezenet1_1", "googlenet", "efficientnet_b0"]
)
def test_networks_of_torchvision_take_small_images(images, name):
    model = network("torchvision", name=name).eval()
    assert model(images).shape == (5, 10)


def test_a_network_of_torchvision_for_larger_images_is_refused_before_training(workplace):
    (workplace / "large.toml").write_text('[model]\nkind = "torchvision"\nname = "vit_b_32"\n')
    with pytest.raises(
        UsageError, match=r"^model\.name = 'vit_b_32': AssertionError: Wrong image height! Expected 224"
    ):
        check_network(load_config("large.toml"), load_dataset("digits")[0])


def test_an_unknown_network_of_torchvision_is_named():
    with pytest.raises(ValueError, match=r"model.name = 'resnet19': torchvision has .*resnet18"):
        network("torchvision", name="resnet19")


def test_dropout_of_the_mlp_is_for_training_only(images):
    model = network("mlp", widths=(64, 32), dropout=0.5)
    assert not model.train()(images).equal(model(images))
    assert model.eval()(images).equal(model(images))
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [64, 32, 10]


@pytest.mark.parametrize(("widths", "depth"), [((4, 5, 6), 1), ((6, 12, 8), 3)])
def test_widths_and_depth_shape_the_cnn(images, widths, depth):
    model = network("cnn", directions=5, widths=widths, depth=depth)
    channels = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert channels == [width for width in widths for _ in range(depth)]
    assert model(images).shape == model(images[:, :16, :16]).shape == (5, 10)


def test_the_bias_of_the_whitened_patches_starts_at_zero_and_is_trained(images):
    plain, biased = models = [network("cnn", directions=5, widths=(10, 10, 10), bias=bias) for bias in (False, True)]
    for model in models:
        model.network.initialise(model.normalise(images).permute(0, 3, 1, 2))
    biased.load_state_dict(plain.state_dict(), strict=False)
    assert biased(images).equal(plain(images))
    F.cross_entropy(biased(images), torch.arange(5)).backward()
    assert biased.network.bias.grad.count_nonzero() == 10


def test_whitened_patches_have_unit_covariance(images):
    model = network("linear")
    smooth = F.avg_pool2d(model.normalise(images).permute(0, 3, 1, 2), 3, stride=1)  # patches of correlated pixels
    filters = whitening_filters(smooth, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    responses = F.conv2d(smooth, filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses[:12] @ responses[:12].T / responses.shape[1], torch.eye(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(responses[12:], -responses[:12])
    shares = F.conv2d(smooth, filters / filters.flatten(1).norm(dim=1)[:, None, None, None]).pow(2).mean((0, 2, 3))
    assert shares[:12].diff().max() <= 0  # the directions of most variance first


def test_whitening_sees_images_of_all_classes_where_they_are_ordered_by_class(workplace):
    digits = load_dataset("digits")[0]
    labels = np.repeat(np.arange(10, dtype=np.uint8), 700)
    images = (
        np.random.default_rng(0).integers(0, 25, (7000, 32, 32, 3), dtype=np.uint8) + 25 * labels[:, None, None, None]
    )
    config = resolve_config(load_config(str(EXPERIMENTS / "cnn.toml"), ["data.val_size=0"]), digits, "fp32")
    dataset = replace(digits, images={"train": images}, labels={"train": labels})
    model = make_model(config, dataset)
    expected = whitening_filters(model.normalise(torch.from_numpy(images)).permute(0, 3, 1, 2))
    torch.testing.assert_close(model.network.whitening, expected, rtol=0.1, atol=0.1)


def test_whitening_sees_training_images_only(workplace):
    dataset = load_dataset("digits")[0]
    config = resolve_config(load_config(str(EXPERIMENTS / "cnn.toml")), dataset, "fp32")
    train, val = split_train(dataset.labels["train"], config.data)
    first = make_model(config, dataset).network.whitening
    dataset.images["train"][val] = 255  # a copy in memory
    dataset.images["test"][:] = 255
    assert make_model(config, dataset).network.whitening.equal(first)
    dataset.images["train"][train[0]] = 255 - dataset.images["train"][train[0]]
    assert not make_model(config, dataset).network.whitening.equal(first)


def test_a_block_begins_as_the_identity_of_its_first_inputs():
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(identity_convolution(3, 5)(x)[:, :3], x)


def test_test_time_augmentation_averages_six_views(images):
    model = network("cnn", directions=5, widths=(4, 4, 4), depth=1).eval()

    def logits(pixels):
        return model(torch.from_numpy(np.ascontiguousarray(pixels)))

    padded = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    centre, left, right = images.numpy(), padded[:, :32, :32], padded[:, 2:, 2:]
    both = [logits(view) + logits(view[:, :, ::-1]) for view in (centre, left, right)]
    expected = both[0] / 4 + both[1] / 8 + both[2] / 8
    torch.testing.assert_close(model.augmented_logits(images), expected)


def test_loss_and_confusion_of_four_rows_worked_by_hand():
    config = Config(model={"kind": "linear"}, optim=MuonConfig(label_smoothing=0.5))
    model = make_network(config, 2, (0.5,) * 3, (0.5,) * 3)
    nn.init.zeros_(model.network.head.weight)
    model.network.head.bias.data = torch.tensor([1.0, 3.0]).log()  # every image: class 1 with probability 3/4
    images, labels = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1, 1, 1])
    model.start_stage("val")
    loss = model.step((images, labels), "val")
    assert loss.item() == pytest.approx(-(np.log(0.25) + 3 * np.log(0.75)) / 4)
    assert model.count("val").tolist() == [[0, 1], [0, 3]]
    model.start_stage("train")
    smoothed = model.step((images, labels), "train")  # smoothing 0.5 over two classes: target 3/4, the other 1/4
    low, high = -np.log(0.25), -np.log(0.75)
    assert smoothed.item() == pytest.approx(((0.75 * low + 0.25 * high) + 3 * (0.75 * high + 0.25 * low)) / 4)


def test_served_probabilities_are_the_softmax_of_the_logits(images):
    model = network("cnn", directions=5, widths=(4, 4, 4), depth=1).eval()
    for side in 32, 24:
        probabilities = Predictor(model, side).eval()(images)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
        torch.testing.assert_close(probabilities, model(resize(images, side)).softmax(1))
