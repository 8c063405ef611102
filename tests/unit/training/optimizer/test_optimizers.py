"""Which optimizers are refused, and what is reported about the LR of unusual ones."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.training.optimizer.optimizers import (
    highest_useful_lr,
    lr_remark,
    optimizer_class,
    optimizer_errors,
    unwrapped,
)
from tests.multiprocess.sweeps import small_model
from tests.unit.training.optimizer.test_learning_rate import two_groups
from tests.unit.training.optimizer.unusual_optimizers import Lookahead, SelfScalingSGD


def test_optimizers_whose_lr_cannot_be_swept_say_why() -> None:
    """L-BFGS searches along a line; an LR of 0 cannot be multiplied."""
    parameters = list(small_model().parameters())
    (refusal,) = optimizer_errors(torch.optim.LBFGS(parameters))
    assert refusal.startswith("optimizer must step without a closure, got LBFGS")
    (refusal,) = optimizer_errors(torch.optim.SGD(parameters, lr=0.0))
    assert refusal.startswith("optimizer.lr must be a number above 0 in every group, got 0")
    nameless = torch.optim.SGD(parameters, lr=0.1)
    del nameless.param_groups[0]["lr"]
    (refusal,) = optimizer_errors(nameless)
    assert refusal.startswith("optimizer must have an LR in every group, got SGD")
    assert optimizer_errors(torch.optim.SGD(parameters, lr=0.1)) == []


def test_only_accelerates_wrapper_is_looked_into() -> None:
    """What other wrappers do around a step would be skipped, and their state would not be restored."""
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
    """An LR of 1e-3 for Prodigy is a thousandth of its own step size."""
    parameters = list(small_model().parameters())
    assert (
        lr_remark(SelfScalingSGD(parameters)) == "the LR multiplies the step size that SelfScalingSGD finds by itself"
    )
    assert lr_remark(torch.optim.Adam(parameters)) == ""


def test_groups_that_differ_are_named() -> None:
    """The suggested LR is that of one group."""
    optimizer = torch.optim.SGD(two_groups(lr=0.05))
    optimizer.param_groups[0]["lr"] = 0.5
    assert lr_remark(optimizer) == "the LR is that of parameter group 0, the others keep their ratios to it"


def test_adafactor_caps_its_lr_and_says_so() -> None:
    """A sweep up to 1e4 of an optimizer that takes 1/sqrt(step) at most shows nothing but a flat line."""
    parameters = [torch.nn.Parameter(torch.ones(2))]
    assert highest_useful_lr(torch.optim.Adafactor(parameters, lr=1e-2)) == 1.0
    assert highest_useful_lr(torch.optim.SGD(parameters, lr=1e-2)) == math.inf
    assert (
        lr_remark(torch.optim.Adafactor(parameters, lr=1e-2)) == "Adafactor takes 1/sqrt(step) in place of a larger LR"
    )


def test_the_class_of_an_optimizer_is_what_its_lr_means() -> None:
    """Weak evidence of the best LR; where the LR multiplies a step size of the optimizer's own, there is none."""
    parameters = list(small_model().parameters())
    expected = [
        (torch.optim.Adam(parameters), OptimizerClass.ADAPTIVE),
        (torch.optim.AdamW(parameters), OptimizerClass.ADAPTIVE),
        (torch.optim.NAdam(parameters), OptimizerClass.ADAPTIVE),
        (torch.optim.RMSprop(parameters), OptimizerClass.ADAPTIVE),
        (torch.optim.Adagrad(parameters), OptimizerClass.ADAGRAD),
        (torch.optim.SGD(parameters), OptimizerClass.SGD),
        (torch.optim.SGD(parameters, momentum=0.9), OptimizerClass.MOMENTUM),
        (torch.optim.Adafactor(parameters), None),
        (SelfScalingSGD(parameters), None),
    ]
    assert [optimizer_class(optimizer) for optimizer, _ in expected] == [kind for _, kind in expected]
    prepared = object.__new__(AcceleratedOptimizer)
    prepared.optimizer = torch.optim.SGD(parameters)
    assert optimizer_class(prepared) == OptimizerClass.SGD


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Lion", OptimizerClass.SIGN),
        ("Muon", OptimizerClass.ORTHOGONAL),
        ("AdamW8bit", OptimizerClass.ADAPTIVE),
        ("Lamb", None),
    ],
)
def test_an_optimizer_of_another_library_is_known_by_its_name(name: str, expected: OptimizerClass | None) -> None:
    """Lion and Muon come from many places, and an 8-bit optimizer is what it stands for."""
    other = type(name, (torch.optim.Optimizer,), {})
    assert optimizer_class(other(small_model().parameters(), {"lr": 0.1})) == expected
