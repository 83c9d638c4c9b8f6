"""One run on several devices: processes on this machine that share every batch."""

import os
import signal
import sys
import time

import pytest
import torch
from conftest import Driver, experiment_arguments, processes_in, recorded
from mlflow.tracking import MlflowClient
from pytorch_lightning import Callback
from test_train import Stop, config_of, figures

from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UsageError, UserError
from cifar_lab.training.classifier import Diverged
from cifar_lab.training.distributed import ranks
from cifar_lab.training.hardware import check_devices
from cifar_lab.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("digits"))
        return load_dataset("digits")[0]


def test_two_processes_compute_what_one_does(digits, tmp_path):
    one, two = (
        train(config_of("linear", digits, f"trainer.devices={devices}"), 0, digits, tmp_path / str(devices), "cpu")
        for devices in (1, 2)
    )
    assert two.weights_digest != one.weights_digest  # sums of two parts have other last bits
    assert len(two.epochs) == len(one.epochs) == 8
    for epochs in zip(one.epochs, two.epochs, strict=True):
        first, second = ({**epoch.metrics, "epoch_seconds": 0} for epoch in epochs)
        assert second == pytest.approx(first, rel=1e-4)
    assert two.test == pytest.approx(one.test, rel=1e-4)
    for stage in ("train", "val", "test"):  # every image of every set, once
        rows = [result.model.confusion[stage].sum(1).tolist() for result in (one, two)]
        assert rows[0] == rows[1]
    for stage in ("val", "test"):  # in the order of the images
        (first, labels), (second, same) = (result.predictions[stage] for result in (one, two))
        assert labels.tolist() == same.tolist()
        torch.testing.assert_close(second.float(), first.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("setting", ["trainer.micro_batch_size=64", "data.val_size=0"])
def test_two_processes_give_the_same_bits_in_one_go_and_in_pieces(digits, tmp_path, setting):
    config = config_of("cnn", digits, "trainer.epochs=3", "trainer.devices=2", "trainer.tta=true", setting)
    whole = train(config, 0, digits, tmp_path / "whole", "cpu")
    with pytest.raises(SystemExit):
        train(config, 0, digits, tmp_path / "pieces", "cpu", callbacks=[Stop(23)])
    assert figures(train(config, 0, digits, tmp_path / "pieces", "cpu")) == figures(whole)


def test_two_processes_learn_as_well_as_one(digits, tmp_path):
    accuracies = [
        [
            train(config_of("cnn", digits, f"trainer.devices={d}"), seed, digits, tmp_path / f"{d}{seed}", "cpu")
            .epochs[-1]
            .metrics["val/acc"]
            for seed in range(2)
        ]
        for d in (1, 2)
    ]
    one, two = (sum(values) / 2 for values in accuracies)
    assert abs(one - two) < 0.05, accuracies
    assert min(one, two) > 0.8, accuracies  # guessing gives 0.1


class Enough(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch == 1


def test_the_first_process_ends_the_training_of_all(digits, tmp_path):
    config = config_of("linear", digits, "trainer.devices=2")
    result = train(config, 0, digits, tmp_path / "run", "cpu", callbacks=[Enough()])
    assert len(result.epochs) == 2
    assert result.model.confusion["test"].sum() == len(digits.labels["test"])


def test_errors_are_reported_by_the_first_process(digits, tmp_path):
    config = config_of("linear", digits, "optim.learning_rate=1e38", "trainer.devices=2")
    with pytest.raises(Diverged, match=r"train loss is (nan|inf) at epoch 1, step \d+ of \d+; try a smaller"):
        train(config, 0, digits, tmp_path / "run", "cpu")
    with pytest.raises(UsageError, match=r"trainer\.devices = 2: torch finds 1 GPU here"):
        check_devices("mps", 2)


def test_an_error_of_another_rank_is_one_line_with_its_traceback_as_the_cause():
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: [^\n]+$") as raised, ranks(2, "cpu", divmod, 0):
        torch.distributed.barrier()
    assert "Traceback" in str(raised.value.__cause__)


def test_a_network_interface_that_is_not_there_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    config = config_of("linear", digits, "trainer.devices=2")
    with pytest.raises(UserError, match=r"the processes of the run can't reach each other: .*nowhere0"):
        train(config, 0, digits, tmp_path / "run", "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_process_that_dies_ends_the_run_and_the_next_start_continues_it(tracked, unused):
    command, _, *cnn = experiment_arguments("--seeds", "1", "--epochs", "12", "--devices", "2")
    arguments = [command, *cnn]
    client = MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")

    def epochs():
        experiment = client.get_experiment_by_name("digits")
        found = client.search_runs([experiment.experiment_id], "tags.kind = 'run'") if experiment else []
        return sum(len(client.get_metric_history(run.info.run_id, "val/acc")) for run in found)

    driver = Driver(unused, *arguments)
    deadline = time.monotonic() + 120
    while epochs() < 2:
        assert driver.process.is_alive(), driver.output()
        assert time.monotonic() < deadline, driver.output()
        time.sleep(0.2)
    os.kill(max(processes_in(unused)), signal.SIGKILL)  # the youngest is the second one of the run
    assert driver.wait() == 1, driver.output()
    assert "cnn-seed0 failed: one of its processes died (out of memory?); start again" in driver.output()
    deadline = time.monotonic() + 20
    while processes_in(unused):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver = Driver(unused, *arguments)
    assert driver.wait() == 0, driver.output()
    assert "1 of 1 runs to train on cpu, 1 of them continued" in driver.output()
    (run,) = recorded(client).values()
    assert [step for step, _ in run[2]["val/acc"]] == list(range(1, 13))
