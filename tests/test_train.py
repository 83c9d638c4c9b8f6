import json
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from pytorch_lightning.loggers.logger import DummyLogger

from cifar_lab.config import UsageError, load_config
from cifar_lab.datasets import load_dataset
from cifar_lab.models import NonFiniteLoss
from cifar_lab.train import resolve_accelerator, resolve_config, train, weights_digest


@pytest.fixture
def digits(workplace):
    return load_dataset("digits")[0]


def config_of(name, dataset, *overrides):
    return resolve_config(
        load_config(str(REPOSITORY / "experiments" / f"{name}.toml"), list(overrides)), dataset, "cpu"
    )


class Recorder(DummyLogger):
    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points += [(name, step) for name in metrics]


@pytest.mark.parametrize(("name", "floor"), [("linear", 0.85), ("cnn", 0.9)])
def test_digits_are_learned(digits, tmp_path, name, floor):
    result = train(config_of(name, digits), 0, digits, tmp_path / "run", "cpu")
    assert result.metrics["test/acc"] > floor
    assert result.metrics["val/acc"] > floor


def test_metrics_come_once_per_completed_epoch_and_test_once_at_the_end(digits, tmp_path):
    recorder = Recorder()
    result = train(config_of("linear", digits, "trainer.epochs=3"), 0, digits, tmp_path / "run", "cpu", recorder)
    names = ("train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch_seconds")
    expected = [(name, epoch) for name in names for epoch in (1, 2, 3)] + [("test/loss", 3), ("test/acc", 3)]
    assert sorted(recorder.points) == sorted(expected)
    assert result.model.confusion["test"].sum() == len(digits.labels["test"])
    assert (
        result.model.confusion["test"].sum(1).tolist() == torch.bincount(torch.tensor(digits.labels["test"])).tolist()
    )
    accuracy = result.model.confusion["test"].trace().item() / len(digits.labels["test"])
    assert result.metrics["test/acc"] == pytest.approx(accuracy)


@pytest.mark.parametrize(("name", "precision"), [("linear", "fp32"), ("cnn", "fp32"), ("cnn", "bf16")])
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(digits, tmp_path, name, precision):
    config = config_of(name, digits, "trainer.epochs=1", f"trainer.precision={precision}")
    runs = []
    for index, seed in enumerate((0, 0, 1)):
        torch.rand(index + 1)  # the state of the global generator does not matter
        runs.append(train(config, seed, digits, tmp_path / str(index), "cpu"))
    assert runs[0].weights_digest == runs[1].weights_digest != runs[2].weights_digest
    assert {**runs[0].metrics, "epoch_seconds": 0} == {**runs[1].metrics, "epoch_seconds": 0}


PROGRAM = """
import sys, json, pathlib
from cifar_lab.config import load_config
from cifar_lab.datasets import load_dataset
from cifar_lab.train import resolve_config, train
dataset = load_dataset("digits")[0]
config = resolve_config(load_config(sys.argv[1], ["trainer.epochs=1"]), dataset, "cpu")
result = train(config, 0, dataset, pathlib.Path(sys.argv[2]), "cpu")
del result.metrics["epoch_seconds"]
print(json.dumps([result.weights_digest, result.metrics]))
"""


def test_seed_0_gives_the_same_bits_in_another_process(digits, tmp_path):
    experiment = REPOSITORY / "experiments" / "cnn.toml"
    command = [sys.executable, "-c", PROGRAM, str(experiment), str(tmp_path / "other")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = train(config_of("cnn", digits, "trainer.epochs=1"), 0, digits, tmp_path / "here", "cpu")
    del here.metrics["epoch_seconds"]
    assert json.loads(other.splitlines()[-1]) == [here.weights_digest, here.metrics]


def test_non_finite_loss_says_where(digits, tmp_path):
    config = config_of("linear", digits, "optim.learning_rate=1e38")
    with pytest.raises(NonFiniteLoss, match=r"train loss is (nan|inf) at epoch 1, step \d+ of 10; try a smaller"):
        train(config, 0, digits, tmp_path / "run", "cpu")


def test_checkpoint_holds_the_weights_and_loads_without_unpickling(digits, tmp_path):
    result = train(config_of("linear", digits, "trainer.epochs=1"), 0, digits, tmp_path / "run", "cpu")
    state = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    torch.testing.assert_close(state, dict(result.model.state_dict()))


def test_digest_sees_one_bit_a_name_and_a_shape():
    first = torch.nn.Linear(2, 2)
    second = torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)
    second.weight.data[0, 0] = torch.nextafter(second.weight.data[0, 0], torch.tensor(9.0))
    assert weights_digest(first) != weights_digest(second)
    assert weights_digest(torch.nn.Sequential(first)) != weights_digest(first)


def test_resolved_config_has_nothing_left_open(digits):
    config = config_of("cnn", digits)
    assert config.data.val_size == 143
    assert config.trainer.precision in ("fp32", "bf16")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named():
    assert resolve_accelerator("auto") == "cpu"
    with pytest.raises(UsageError, match="--accelerator gpu: torch finds no GPU"):
        resolve_accelerator("gpu")
