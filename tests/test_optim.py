import pytest
from torch import nn

from cifar_lab.config import OptimConfig
from cifar_lab.optim import make_optimizer, make_schedule


def test_rate_rises_to_the_peak_and_falls_to_zero():
    optim = OptimConfig(learning_rate=1.0, warmup=0.3)
    optimizer = make_optimizer(nn.Linear(2, 2), optim)
    schedule = make_schedule(optimizer, optim, steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert schedule.get_last_lr()[0] == 0


def test_only_weights_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decay = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(network, OptimConfig(weight_decay=0.1)).param_groups
        for parameter in group["params"]
    }
    assert [decay[id(parameter)] for parameter in network.parameters()] == [0.1, 0, 0, 0]
