"""Optimiser and learning-rate schedule."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_lab.config import OptimConfig

NEWTON_SCHULZ_STEPS = 3
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """SGD with Nesterov momentum, whose steps are made orthogonal in the groups with `orthogonal`.

    In these, every parameter is a filter bank (filters, ...): it is rescaled to the norm sqrt(filters), then moves by
    `lr` times the orthogonal matrix nearest to its step (see orthogonalise). Method: Keller Jordan, "Muon: An optimizer
    for hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "orthogonal": False})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; `closure` computes loss and gradients."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            steps = self._nesterov(parameters, group["momentum"], group["weight_decay"])
            if group["orthogonal"]:
                norms = torch._foreach_norm(parameters)
                torch._foreach_mul_(
                    parameters, [len(p) ** 0.5 / norm for p, norm in zip(parameters, norms, strict=True)]
                )
                steps = orthogonalise(steps, self.dtype)
            torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        return loss

    def _nesterov(self, parameters: list[Tensor], momentum: float, weight_decay: float) -> list[Tensor]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if weight_decay:
            gradients = [*torch._foreach_add(gradients, parameters, alpha=weight_decay)]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return [*torch._foreach_add(gradients, buffers, alpha=momentum)]


def orthogonalise(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Approximately U V^T for each matrix U S V^T (rows, ...), computed in `dtype`, in one batch per shape.

    Method: Muon's quintic Newton-Schulz iteration; the singular values end roughly between 0.5 and 1.5.
    """
    a, b, c = NEWTON_SCHULZ
    same: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        same[matrix.shape].append(index)
    result = list(matrices)
    for shape, indices in same.items():
        x = torch.stack([matrices[index].flatten(1) for index in indices]).to(dtype)
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        tall = x.shape[1] > x.shape[2]
        if tall:
            x = x.mT
        for _ in range(NEWTON_SCHULZ_STEPS):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
        for index, matrix in zip(indices, (x.mT if tall else x).to(matrices[0].dtype), strict=True):
            result[index] = matrix.reshape(shape)
    return result


def make_optimizer(module: nn.Module, optim: OptimConfig, dtype: torch.dtype) -> Muon:
    """Muon in `dtype` for the trainable filters of convolutions (4 axes), SGD for the other parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    sgd = {"lr": optim.learning_rate, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
    muon = {"lr": optim.filter_learning_rate, "momentum": optim.filter_momentum, "orthogonal": True}
    groups = [
        {"params": [p for p in parameters if p.ndim != 4], **sgd},
        {"params": [p for p in parameters if p.ndim == 4], **muon},
    ]
    return Muon([group for group in groups if group["params"]], dtype)


def make_schedule(optimizer: Optimizer, optim: OptimConfig, steps: int) -> LambdaLR:
    """Linear warm-up during the share `optim.warmup` of the steps, then linear decay to zero."""
    peak = optim.warmup * steps

    def factor(step: int) -> float:
        return (step + 1) / (peak + 1) if step < peak else (steps - step) / (steps - peak)

    return LambdaLR(optimizer, factor)
