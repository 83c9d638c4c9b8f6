"""Optimiser and learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_lab.sections import AdamWConfig, MuonConfig, OptimConfig, SGDConfig

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
        self.rates: list[Tensor] = []
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum"] = torch.zeros_like(p)

    def copy_rates(self) -> None:
        """Copy the learning rates to the device. From then on `step` takes them from there, not from the groups."""
        if not self.rates:
            self.rates = [torch.zeros((), device=group["params"][0].device) for group in self.param_groups]
        for rate, group in zip(self.rates, self.param_groups, strict=True):
            rate.fill_(-group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; `closure` computes loss and gradients."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for index, group in enumerate(self.param_groups):
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
            if self.rates:
                torch._foreach_addcmul_(parameters, steps, [self.rates[index]] * len(steps))  # same bits on a CPU
            else:
                torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        return loss

    def _nesterov(self, parameters: list[Tensor], momentum: float, weight_decay: float) -> list[Tensor]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if weight_decay:
            gradients = [*torch._foreach_add(gradients, parameters, alpha=weight_decay)]
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


def make_optimizer(module: nn.Module, optim: OptimConfig, dtype: torch.dtype) -> Optimizer:
    """The optimiser of the trainable parameters; the first group has the learning rate `optim.learning_rate`.

    dtype: of Muon's arithmetic. Muon gets the filters of convolutions, but not those that see the three channels of the
    pixels, such as a ViT's patches, or a part of the channels, such as depthwise ones: their matrices are no maps
    between features.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if isinstance(optim, SGDConfig):
        nesterov = optim.nesterov and optim.momentum > 0
        groups = _groups(parameters, optim)
        return SGD(groups, optim.learning_rate, optim.momentum, nesterov=nesterov, foreach=True)
    if isinstance(optim, AdamWConfig):
        return AdamW(_groups(parameters, optim), optim.learning_rate, optim.betas, optim.eps, foreach=True)
    assert isinstance(optim, MuonConfig)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and m.in_channels != 3]
    filters = {id(convolution.weight) for convolution in convolutions}
    sgd = {"lr": optim.learning_rate, "momentum": optim.momentum}
    muon = {"lr": optim.filter_learning_rate, "momentum": optim.filter_momentum, "orthogonal": True}
    rest = _groups([p for p in parameters if id(p) not in filters], optim)
    return Muon(
        [*(group | sgd for group in rest), *_group([p for p in parameters if id(p) in filters], **muon)],
        dtype,
    )


def _groups(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups with weight decay, and without if biases and norms are to have none."""
    if optim.decay_vectors:
        return _group(parameters, weight_decay=optim.weight_decay)
    matrices = _group([p for p in parameters if p.ndim > 1], weight_decay=optim.weight_decay)
    return matrices + _group([p for p in parameters if p.ndim <= 1], weight_decay=0.0)


def _group(parameters: Sequence[nn.Parameter], **settings: Any) -> list[dict[str, Any]]:
    return [{"params": list(parameters), **settings}] if parameters else []


def make_schedule(optimizer: Optimizer, optim: OptimConfig, steps: int) -> LambdaLR:
    """Warm-up during the share `optim.warmup` of the steps, then `optim.schedule`.

    "one-cycle" (Smith and Topin 2017) rises from 1/25 along a cosine, as torch's OneCycleLR; momenta stay as they are.
    """
    peak = optim.warmup * steps

    def factor(step: int) -> float:
        if step < peak:
            rise = (step + 1) / (peak + 1)
            return 0.04 + 0.96 * (1 - math.cos(math.pi * rise)) / 2 if optim.schedule == "one-cycle" else rise
        left = (steps - step) / (steps - peak)
        if optim.schedule == "constant":
            return 1.0
        if optim.schedule == "step":
            return optim.gamma ** sum(step >= milestone * steps for milestone in optim.milestones)
        return left if optim.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2

    return LambdaLR(optimizer, factor)
