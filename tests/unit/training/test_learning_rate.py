"""What a recorded learning rate stands for, and what is done with a suggested one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from lrrunner.training.learning_rate import LearningRate, optimizer_errors, remark, unwrapped
from tests.multiprocess.sweeps import small_model
from tests.unit.training.optimizers import Lookahead, SelfScalingSGD


def two_groups(**options: Any) -> list[dict[str, Any]]:
    model = small_model()
    return [{"params": model[0].parameters()}, {"params": model[2].parameters(), **options}]


def test_groups_that_share_an_lr_are_recorded_by_it() -> None:
    """A script that sets param_groups by hand leaves the default behind, which nothing uses any more."""
    optimizer = torch.optim.SGD(two_groups(), lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    learning_rate = LearningRate(optimizer)
    assert (learning_rate.base_lr, learning_rate.ratios) == (0.02, (1.0, 1.0))


def test_groups_that_differ_are_recorded_by_the_optimizers_default() -> None:
    """What a user writes as optimizer.lr."""
    learning_rate = LearningRate(torch.optim.SGD(two_groups(lr=0.01), lr=0.1))
    assert learning_rate.base_lr == 0.1
    assert learning_rate.ratios == pytest.approx((1.0, 0.1))


def test_groups_that_all_left_the_default_are_recorded_by_the_largest() -> None:
    """Nothing trains with the default, 1e-3 for SGD: an LR that stands for it would be read as a group's."""
    optimizer = torch.optim.SGD(two_groups(lr=0.05))
    optimizer.param_groups[0]["lr"] = 0.5
    learning_rate = LearningRate(optimizer)
    assert learning_rate.base_lr == 0.5
    assert learning_rate.ratios == pytest.approx((1.0, 0.1))
    assert remark(optimizer) == "the LR is that of parameter group 0, the others keep their ratios to it"


def test_a_schedule_on_tensor_learning_rates_leaves_the_ratios_alone() -> None:
    """The scheduler fills the tensor that is the optimizer's default at the same time."""
    lr, other = torch.tensor(0.1), torch.tensor(0.01)
    optimizer = torch.optim.Adam(two_groups(lr=other), lr=lr, foreach=False)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert optimizer.defaults["lr"].item() == pytest.approx(0.05)
    assert LearningRate(optimizer).ratios == pytest.approx((1.0, 0.1))


def test_an_applied_lr_keeps_ratios_and_holds_for_later_schedulers() -> None:
    """A scheduler that is made later begins with initial_lr where an earlier one has left it."""
    optimizer = torch.optim.SGD(two_groups(lr=0.01), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    with pytest.warns(UserWarning, match="make it again"):
        LearningRate(optimizer).apply(0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04])
    assert [group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04])
    again = LearningRate(optimizer)
    assert again.base_lr == 0.4
    assert again.ratios == pytest.approx((1.0, 0.1))


def test_an_applied_lr_fills_a_tensor() -> None:
    """Capturable optimizers hold on to it."""
    lr = torch.tensor(0.1)
    optimizer = torch.optim.Adam(small_model().parameters(), lr=lr, foreach=False)
    LearningRate(optimizer).apply(0.25)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


def test_optimizers_whose_lr_cannot_be_swept_say_why() -> None:
    """L-BFGS searches along a line; nothing can be multiplied to climb from 0."""
    parameters = list(small_model().parameters())
    (refusal,) = optimizer_errors(torch.optim.LBFGS(parameters))
    assert refusal.startswith("optimizer must step without a closure, got LBFGS")
    (refusal,) = optimizer_errors(torch.optim.SGD(parameters, lr=0.0))
    assert refusal.startswith("optimizer.lr must be above 0, got 0")
    nameless = torch.optim.SGD(parameters, lr=0.1)
    del nameless.param_groups[0]["lr"]
    (refusal,) = optimizer_errors(nameless)
    assert refusal.startswith("optimizer must have an LR in every group, got SGD")
    assert optimizer_errors(torch.optim.SGD(parameters, lr=0.1)) == []


def test_only_accelerates_wrapper_is_looked_into() -> None:
    """What others do around an inner optimizer's step would be left out, and its state not be put back."""
    inner = torch.optim.SGD(small_model().parameters(), lr=0.1)
    prepared = object.__new__(AcceleratedOptimizer)
    prepared.optimizer = inner
    assert unwrapped(prepared) is inner
    wrapper = Lookahead(inner)
    assert unwrapped(wrapper) is wrapper
    (refusal,) = optimizer_errors(wrapper)
    assert refusal.startswith("optimizer must keep its state by itself, got Lookahead around SGD")
    chained = torch.optim.SGD(small_model().parameters(), lr=0.1)
    chained.parts = [inner]  # type: ignore[attr-defined]
    assert len(optimizer_errors(chained)) == 1


def test_an_optimizer_that_finds_its_step_size_says_what_its_lr_means() -> None:
    """1e-3 as an LR of Prodigy is a thousandth of what it would do by itself."""
    parameters = list(small_model().parameters())
    assert remark(SelfScalingSGD(parameters)) == "the LR multiplies the step size that SelfScalingSGD finds by itself"
    assert remark(torch.optim.Adam(parameters)) == ""
