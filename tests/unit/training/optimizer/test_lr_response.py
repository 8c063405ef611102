"""Whether an optimizer uses the LR that is set is tried on a small copy, not looked up in a list."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.training.optimizer.lr_response import LrResponse, lr_response
from lrrunner.training.optimizer.optimizers import highest_useful_lr, lr_remark, optimizer_errors
from tests.multiprocess.sweeps import small_model


class FixedSGD(torch.optim.SGD):
    """Steps by the LR that it was made with."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.own_lr = lr

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(parameter.grad, alpha=self.own_lr)


class CappedSGD(torch.optim.SGD):
    """Takes no LR above 0.25."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=min(group["lr"], 0.25))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.RAdam(p, lr=0.1),
    ],
)
def test_a_usual_optimizer_responds_at_every_lr(make: Any) -> None:
    """Nothing of the optimizer, its parameters or torch's generator changes."""
    model = small_model(torch.float32)
    optimizer = make(model.parameters())
    before, drawn = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    weights = [p.detach().clone() for p in model.parameters()]
    assert lr_response(optimizer) == LrResponse()
    assert str(optimizer.state_dict()) == str(before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("make", [FixedSGD, torch.optim.Rprop, torch.optim.ASGD])
def test_an_optimizer_that_ignores_its_lr_is_refused(make: Any) -> None:
    """Rprop adapts step sizes of its own, ASGD uses the LR of the step before: recorded would not be used."""
    optimizer = make(small_model().parameters(), lr=0.1)
    assert lr_response(optimizer).is_ignored
    (refusal,) = optimizer_errors(optimizer)
    assert f"got {make.__name__}, whose step does not change with it; use another optimizer" in refusal


def test_an_lr_that_is_capped_bounds_the_sweep() -> None:
    """Whoever made the optimizer."""
    optimizer = CappedSGD(small_model().parameters(), lr=0.1)
    assert highest_useful_lr(optimizer) == pytest.approx(0.25)
    assert optimizer_errors(optimizer) == []
    assert lr_remark(optimizer) == "CappedSGD takes no larger steps above an LR of 0.25"


def test_a_scheduler_of_the_original_is_not_moved() -> None:
    """A scheduler replaces ``step`` by a function that steps, and counts, for the original."""
    optimizer = torch.optim.SGD(small_model().parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls: list[int] = []
    optimizer.register_step_pre_hook(lambda *arguments: calls.append(1))
    count = optimizer._opt_called if hasattr(optimizer, "_opt_called") else None
    assert lr_response(optimizer) == LrResponse()
    assert calls == []
    assert (optimizer._opt_called if hasattr(optimizer, "_opt_called") else None) == count
    assert scheduler.get_last_lr() == [0.1]


class HoldsTheModel(torch.optim.SGD):
    """May be too large to copy."""

    def __init__(self, params: Any, model: nn.Module) -> None:
        super().__init__(params, lr=0.1)
        self.model = model


def test_what_cannot_be_tried_counts_as_responding() -> None:
    """A sweep that a try could not judge must not be refused for it."""
    model = small_model()
    assert lr_response(HoldsTheModel(model.parameters(), model)).highest_lr == math.inf
    assert not lr_response(torch.optim.SparseAdam(model.parameters(), lr=0.1)).is_ignored
