"""A captured run is the plain one: same weights, metrics and records, on a CPU and on a simulated GPU."""

from pathlib import Path

import pytest
import torch
from conftest import EXPERIMENTS
from make_believe import launches
from pytorch_lightning import Callback
from test_gpu import NoWaits
from test_train import Stop, config_of, figures

from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UsageError, UserError
from cifar_lab.training import batches
from cifar_lab.training.train import train

CASES = {
    "cnn": ["data.sides=[32]"],
    "linear": [],
    "linear, one-vs-one": ["model.one_vs_one=true"],
    "cnn, images of two sizes": ["data.sides=[16, 32]"],
    "cnn, one-vs-one": ["data.sides=[32]", "model.one_vs_one=true"],
    "cnn, mixed": ["data.sides=[32]", "data.mixup=0.4", "data.cutmix=1", "optim.clip_norm=1", "data.val_size=0"],
    "cnn, sgd": ["data.sides=[32]", "optim.kind=sgd", "optim.learning_rate=0.02", "data.jitter=0.2"],
    "cnn, own network": ["data.sides=[32]", "model.kind=own"],
    "cnn, adamw": ["data.sides=[32]", "optim.kind=adamw", "optim.learning_rate=0.01"],
}
OWN = """
import torch
from cifar_lab.networks.cnn import Config, Network as CNN

class Network(CNN):
    def forward(self, images):
        return torch.nn.functional.dropout(super().forward(images), 0.3, self.training)

def augment(images, labels, generator):
    return images.roll(int(torch.randint(3, (), generator=generator)), 2)
"""
WAITING = OWN.replace("return torch.nn", "images = images * float(images.mean() < 9)\n        return torch.nn")
CAPTURED = "trainer.captured=true"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


@pytest.fixture
def digits(workplace, monkeypatch):
    monkeypatch.setattr(batches, "RANGE", 3)
    Path("networks").mkdir()
    Path("networks/own.py").write_text(OWN)
    Path("networks/waiting.py").write_text(WAITING)
    return load_dataset("digits")[0]


def configs(case, digits, *settings):
    """Of the plain and of the captured run: 10 steps per epoch for `linear`, 5 for `cnn`."""
    name, settings = case.partition(",")[0], ("trainer.epochs=2", "trainer.precision=fp32", *CASES[case], *settings)
    return config_of(name, digits, *settings), config_of(name, digits, CAPTURED, *settings)


@pytest.mark.parametrize("case", [*CASES][1:])
def test_a_captured_run_on_a_cpu_is_the_plain_one_in_one_go_and_in_pieces(digits, tmp_path, case):
    plain, captured = configs(case, digits)
    expected = figures(train(plain, 0, digits, tmp_path / "plain", "cpu"))
    assert figures(train(captured, 0, digits, tmp_path / "whole", "cpu")) == expected
    ranges = 5 if case.startswith("linear") else 3  # an epoch, and one more
    with pytest.raises(SystemExit):
        train(captured, 0, digits, tmp_path / "pieces", "cpu", callbacks=[Stop(ranges)])
    assert figures(train(captured, 0, digits, tmp_path / "pieces", "cpu")) == expected


@pytest.mark.parametrize("settings", [[], ["model.one_vs_one=true"]])
def test_bf16_is_that_of_the_plain_run(digits, tmp_path, settings):
    plain, captured = configs("cnn, images of two sizes", digits, "trainer.precision=bf16", *settings)
    expected = figures(train(plain, 0, digits, tmp_path / "plain", "cpu"))
    assert figures(train(captured, 0, digits, tmp_path / "captured", "cpu")) == expected


@pytest.mark.parametrize("case", ["linear, one-vs-one", "cnn, images of two sizes", "cnn, own network", "cnn, sgd"])
def test_a_replayed_graph_gives_the_bits_of_the_plain_run_and_no_step_waits(digits, tmp_path, gpu, case):
    plain, captured = configs(case, digits)
    expected = figures(train(plain, 0, digits, tmp_path / "plain", "cuda"))
    ranges = 5 if case.startswith("linear") else 3
    with pytest.raises(SystemExit):
        train(captured, 0, digits, tmp_path / "pieces", "cuda", callbacks=[Stop(ranges)])
    assert figures(train(captured, 0, digits, tmp_path / "pieces", "cuda", callbacks=[NoWaits()])) == expected


class Launches(Callback):
    """The number of launches after each batch."""

    def on_train_start(self, *_):
        self.counts = []

    def on_train_batch_end(self, *_):
        self.counts.append(launches[0])


def test_a_step_is_a_tenth_of_the_launches(digits, tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(batches, "RANGE", 1)
    each = []
    for config, per_step in zip(configs("cnn", digits), (2, 1), strict=True):  # two micro-batches
        counter = Launches()
        train(config, 0, digits, tmp_path / f"{per_step}", "cuda", callbacks=[counter])
        each.append(counter.counts[5 * per_step - 1] - counter.counts[4 * per_step - 1])
    print("launches per step:", each)  # 405 and 25, of which the graph is one
    assert each[1] < each[0] / 10


def test_a_network_that_cannot_be_captured_costs_one_line(digits, tmp_path, gpu):
    _, captured = configs("cnn, own network", digits, "model.kind=waiting")
    with pytest.raises(UserError, match=r"^trainer.captured: this network can't be captured: CUDA error: [^\n]*$"):
        train(captured, 0, digits, tmp_path / "run", "cuda")


@pytest.mark.parametrize("setting", ["optim.ema=0.9", "trainer.devices=2"])
def test_what_a_captured_run_cannot_do_is_refused(setting):
    with pytest.raises(UsageError, match=r"trainer.captured can't be used with optim.ema or several trainer.devices"):
        load_config(str(EXPERIMENTS / "linear.toml"), [CAPTURED, setting])
