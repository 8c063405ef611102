"""Optimizers of the benchmark's jobs by name: (parameters, lr) -> optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lrrunner.core.lr_estimate import OptimizerClass

MakeOptimizer = Callable[[Any, float], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a moving average of gradients (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(parameter.grad, average, fast).sign(), alpha=-group["lr"])
                average.lerp_(parameter.grad, 1 - slow)


def _make(
    kind: Callable[..., torch.optim.Optimizer], options: dict[str, Any], params: Any, lr: float
) -> torch.optim.Optimizer:
    return kind(params, lr=lr, **options)


KINDS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {"fused": True}),
    "nadam": (torch.optim.NAdam, {}),
    "lion": (Lion, {}),
    "muon": (torch.optim.Muon, {"weight_decay": 0.0}),
}

USUAL_LR = {
    "adam": 1e-3,
    "adamw": 1e-3,
    "momentum": 0.1,
    "nesterov": 0.1,
    "sgd": 0.1,
    "rmsprop": 1e-3,
    "adagrad": 1e-2,
    "nadam": 1e-3,
    "lion": 1e-4,
    "muon": 0.02,
}
"""What one takes without looking: PyTorch's default or, where that is known to be poor, what papers begin with."""


CLASSES = {
    "adam": OptimizerClass.ADAPTIVE,
    "adamw": OptimizerClass.ADAPTIVE,
    "nadam": OptimizerClass.ADAPTIVE,
    "rmsprop": OptimizerClass.ADAPTIVE,
    "adagrad": OptimizerClass.ADAGRAD,
    "momentum": OptimizerClass.MOMENTUM,
    "nesterov": OptimizerClass.MOMENTUM,
    "sgd": OptimizerClass.SGD,
    "lion": OptimizerClass.SIGN,
    "muon": OptimizerClass.ORTHOGONAL,
}
"""What lrrunner takes each of them for."""


def make_optimizer(name: str, **options: Any) -> MakeOptimizer:
    """(parameters, lr) -> the optimizer ``name`` with other options, ``weight_decay`` say."""
    kind, defaults = KINDS[name]
    return functools.partial(_make, kind, defaults | options)
