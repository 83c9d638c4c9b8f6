import pytest
import torch
import torchvision
from torch import nn

from cifar_lab.sections import OPTIMISERS, MuonConfig, SGDConfig
from cifar_lab.training.optimizers import make_optimizer, make_schedule, orthogonalise


def test_rate_rises_to_the_peak_and_falls_to_zero():
    optim = MuonConfig(learning_rate=1.0, warmup=0.3)
    optimizer = make_optimizer(nn.Linear(2, 2), optim, torch.float32)
    schedule = make_schedule(optimizer, optim, steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert schedule.get_last_lr()[0] == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "cosine", "warmup": 0.5}, [1 / 3, 2 / 3, 1, 0.5]),
        ({"schedule": "constant", "warmup": 0.5}, [1 / 3, 2 / 3, 1, 1]),
        ({"schedule": "step"}, [1, 1, 0.1, 0.01]),
        ({"schedule": "step", "milestones": (0.25,), "gamma": 0.5}, [1, 0.5, 0.5, 0.5]),
        ({"schedule": "one-cycle", "warmup": 0.5}, [0.04 + 0.96 * 0.25, 0.04 + 0.96 * 0.75, 1, 0.5]),
    ],
)
def test_schedules_worked_by_hand(settings, expected):
    optim = SGDConfig(kind="sgd", learning_rate=2.0, **settings)
    optimizer = make_optimizer(nn.Linear(2, 2), optim, torch.float32)
    schedule = make_schedule(optimizer, optim, steps=4)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0] / 2)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weight_decay_can_leave_out_biases(kind):
    network = nn.Linear(1, 1)
    optim = OPTIMISERS[kind](kind=kind, learning_rate=0.1, weight_decay=0.5, decay_vectors=False)
    optimizer = make_optimizer(network, optim, torch.float32)
    network.weight.data.fill_(2.0), network.bias.data.fill_(2.0)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    steps = 1.9 if kind == "sgd" else 1  # Nesterov's first step; AdamW decays beside its step
    assert network.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5 * steps))
    assert network.bias.item() == 2


def test_muon_takes_the_filters_that_it_suits():
    def filters(name):
        network = torchvision.models.get_model(name, weights=None)
        groups = make_optimizer(network, MuonConfig(), torch.float32).param_groups
        names = {parameter: key for key, parameter in network.named_parameters()}
        return [[names[p] for p in group["params"]] for group in groups if group["orthogonal"]]

    assert filters("vit_b_16") == []  # its only convolution takes patches of pixels
    (shuffled,) = filters("shufflenet_v2_x0_5")
    assert "conv5.0.weight" in shuffled
    assert "stage2.0.branch2.0.weight" in shuffled  # 1 x 1
    assert not {"conv1.0.weight", "stage2.0.branch2.3.weight"} & set(shuffled)  # pixels, depthwise


def test_matrices_become_nearly_orthogonal_whatever_their_shape():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (40, 2, 3, 3), (5, 5)]
    matrices = [torch.randn(shape, generator=generator) * 10 for shape in shapes]
    for matrix, result in zip(matrices, orthogonalise(matrices, torch.float32), strict=True):
        assert result.shape == matrix.shape
        u, _, vh = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
        values = (u.T @ result.flatten(1) @ vh.T).diagonal()  # along the singular vectors
        assert values.min() > 0.2
        assert values.max() < 1.3
        torch.testing.assert_close(result.flatten(1), u @ values.diag() @ vh, atol=1e-4, rtol=0)  # and nothing else


def test_one_step_worked_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
    optim = MuonConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.2, filter_learning_rate=0.3, filter_momentum=0.6)
    optimizer = make_optimizer(network, optim, torch.float32)
    filters, weight, bias = network.parameters()
    filters.data = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)
    weight.data, bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])
    filters.grad = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    weight.grad, bias.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0])
    optimizer.step()
    # SGD: gradient g + 0.2 w, first Nesterov step 1.5 times that; (1.2, 0.4) and 0.2
    torch.testing.assert_close(weight.data, torch.tensor([[1 - 0.1 * 1.5 * 1.2, 2 - 0.1 * 1.5 * 0.4]]))
    torch.testing.assert_close(bias.data, torch.tensor([1 - 0.1 * 1.5 * 0.2]))
    # Muon: norm 5 becomes sqrt(2); the step has the gradient's direction and about length 1
    step = torch.tensor([3.0, 4.0]) / 5 * 2**0.5 - filters.data.flatten()
    assert step[1] == pytest.approx(0, abs=1e-6)
    assert 0.3 * 0.5 < step[0] < 0.3 * 1.3


def test_a_continued_optimiser_takes_the_same_steps():
    def step(optimizer, parameter, index):
        parameter.grad = torch.sin(parameter.detach() + index)
        optimizer.step()

    whole, parts = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    parts.load_state_dict(whole.state_dict())
    optimizers = [make_optimizer(network, MuonConfig(), torch.bfloat16) for network in (whole, parts)]
    for index in range(4):
        if index == 2:
            state = optimizers[1].state_dict()
            optimizers[1] = make_optimizer(parts, MuonConfig(), torch.bfloat16)
            optimizers[1].load_state_dict(state)
        for optimizer, network in zip(optimizers, (whole, parts), strict=True):
            step(optimizer, network.weight, index)
    assert parts.weight.equal(whole.weight)
