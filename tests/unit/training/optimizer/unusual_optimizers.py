"""Optimizers that tests need and torch does not have."""

from __future__ import annotations

from typing import Any

import torch


class AveragingSGD(torch.optim.SGD):
    """SGD that trains one set of weights and evaluates their average, as schedule-free optimizers do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group["train_mode"] = False

    def train(self) -> None:
        self._switch(training=True)

    def eval(self) -> None:
        self._switch(training=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert all(group["train_mode"] for group in self.param_groups), "stepped in evaluation mode"
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("other", p.clone()).lerp_(p, 0.5)

    @torch.no_grad()
    def _switch(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == training:
                continue
            group["train_mode"] = training
            for p in group["params"]:
                if "other" in self.state[p]:
                    held = p.clone()
                    p.copy_(self.state[p]["other"])
                    self.state[p]["other"].copy_(held)


class SelfScalingSGD(torch.optim.SGD):
    """SGD that multiplies its LR by a step size it finds itself, as Prodigy does."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group |= {"d": 1e-6, "d0": 1e-6, "d_coef": 1.0}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["d"] = min(1e-2, group["d"] * 2)
            group["lr"] *= group["d"]
        super().step(closure)
        for group, lr in zip(self.param_groups, held, strict=True):
            group["lr"] = lr


class Lookahead(torch.optim.Optimizer):
    """Steps another optimizer and keeps slow weights beside it, as wrappers do."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups, self.defaults, self.state = optimizer.param_groups, optimizer.defaults, optimizer.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)
