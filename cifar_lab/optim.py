"""Optimiser and learning-rate schedule."""

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from cifar_lab.config import OptimConfig


def make_optimizer(module: nn.Module, optim: OptimConfig) -> SGD:
    """SGD with Nesterov momentum; weight decay on weights only, not on biases and normalisation."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        momentum=optim.momentum,
        nesterov=optim.momentum > 0,
    )


def make_schedule(optimizer: SGD, optim: OptimConfig, steps: int) -> LambdaLR:
    """Linear warm-up over `optim.warmup` of the steps, then linear decay to zero."""
    peak = optim.warmup * steps

    def factor(step: int) -> float:
        return (step + 1) / (peak + 1) if step < peak else (steps - step) / (steps - peak)

    return LambdaLR(optimizer, factor)
