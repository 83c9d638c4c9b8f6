"""The benchmarks compare equal computations."""

from types import SimpleNamespace

import pytest
from conftest import EXPERIMENTS

import benchmarks.gpu
from benchmarks.inside import train_bare
from benchmarks.table import Row, alternate
from benchmarks.tutorial import train_tutorial
from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.training.checkpoints import weights_digest
from cifar_lab.training.train import resolve_config, train

RUN = SimpleNamespace(
    data=SimpleNamespace(metrics={"test/acc_tta": 0.9}), info=SimpleNamespace(start_time=1000, end_time=4000)
)


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_the_bare_loop_trains_the_same_network_as_ours(workplace, tmp_path, name):
    dataset = load_dataset("digits")[0]
    config = resolve_config(load_config(str(EXPERIMENTS / f"{name}.toml"), ["trainer.epochs=2"]), dataset, "fp32")
    model, seconds = train_bare(config, dataset)
    assert weights_digest(model) == train(config, 0, dataset, tmp_path / "run", "cpu").weights_digest
    assert seconds > 0


def test_on_a_gpu_the_bare_loop_trains_the_same_network_too(gpu, workplace, tmp_path, monkeypatch):
    dataset = load_dataset("digits")[0]
    monkeypatch.setattr(benchmarks.gpu, "NAME", str(EXPERIMENTS / "linear.toml"))
    monkeypatch.setattr(benchmarks.gpu, "alternate", lambda sides: [side() for side in sides])
    monkeypatch.setattr(benchmarks.gpu, "run_experiment", lambda *_, accelerator: (2.0, 1.0, [RUN, RUN]))
    rows = [str(row) for row in benchmarks.gpu.rows(dataset)]
    assert [row.split("|")[-2].strip() for row in rows] == ["lower"] * 4
    assert "captured: 8 seeds (3.0 s per run, 90.00% ± 0.00% with" in rows[0]
    config = resolve_config(load_config(benchmarks.gpu.NAME, ["trainer.epochs=2"]), dataset, "fp32")
    bare = train_bare(config, dataset, "cuda:0")[0]
    assert weights_digest(bare) == train(config, 0, dataset, tmp_path / "run", "cuda").weights_digest


def test_the_tutorial_learns(workplace):
    _, accuracy = train_tutorial(load_dataset("digits")[0], epochs=3)
    assert accuracy > 0.5


def test_sides_are_measured_in_turn_and_their_medians_are_taken():
    calls = []

    def side(name, values):
        return lambda: calls.append(name) or values.pop(0)

    assert alternate([side("ours", [5, 1, 2]), side("other", [4, 9, 8])]) == [2, 8]
    assert calls == ["ours", "other"] * 3


def test_a_row_is_a_line_of_the_table():
    assert str(Row("what", "1 s", "2 s", 0.5, "lower")) == "| what | 1 s | 2 s | 0.50 | lower |"
