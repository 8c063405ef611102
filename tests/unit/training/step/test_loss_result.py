"""What an objective may return, and what is said of everything else that training steps of real projects return."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lrrunner.training.step.item_counts import num_samples
from lrrunner.training.step.loss_result import loss_and_count

BATCH = (torch.zeros(4, 3), torch.zeros(4))


def found(result: Any, batch: Any = BATCH) -> tuple[torch.Tensor | None, Any]:
    return loss_and_count(result, batch=batch, count_items=num_samples, on_cpu=True)


def a_loss() -> torch.Tensor:
    return torch.ones((), requires_grad=True) * 2.0


class LossAndLogits(NamedTuple):
    """A step's output."""

    loss: torch.Tensor
    logits: torch.Tensor


@dataclass
class Output:
    """A model's output."""

    loss: torch.Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has it: a dictionary with attributes."""

    @property
    def loss(self) -> Any:
        """The loss."""
        return self["loss"]


@pytest.mark.parametrize(
    "count",
    [3, 3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0), torch.tensor(3).byte()],
)
def test_a_count_may_come_from_any_library(count: Any) -> None:
    """As long as it is one number."""
    loss = a_loss()
    assert found((loss, count)) == (loss, 3)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (True, "got a bool"),
        (torch.tensor(True), "got a bool"),
        (np.bool_(True), "got a bool"),
        (torch.ones(4, dtype=torch.bool), r"got a tensor of shape \(4,\)"),
        (np.ones(4), "got a ndarray"),
        ({"accuracy": 0.5}, "got a dict"),
        ([3], "got a list"),
        (torch.zeros(4, 10), r"got a tensor of shape \(4, 10\)"),
        (0.75, "got a fraction, 0.75"),
        (13, "got 13, above the 12 elements of the batch"),
        (3 + 0j, "got a complex"),
        (None, "got a NoneType"),
    ],
)
def test_what_comes_with_a_loss_and_is_no_count_is_named(count: Any, message: str) -> None:
    """(loss, dict), (loss, logits), (loss, accuracy): none of them was meant as a number of items."""
    batch = (torch.zeros(4, 3),)
    with pytest.raises(ValueError, match=rf"must be \(loss, num_items\), {message}.*; return the loss alone"):
        found((a_loss(), count), batch)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (LossAndLogits(a_loss(), torch.zeros(4)), "got LossAndLogits; return its loss"),
        (Output(a_loss()), "got Output; return its loss"),
        (ModelOutput(loss=a_loss()), "got ModelOutput; return its loss"),
        ({"loss": a_loss()}, "got dict; return its loss"),
        ((a_loss(), torch.zeros(4), torch.zeros(4)), "got tuple; return its loss alone"),
        ([a_loss(), 3], "got list; return its mean"),
        (2.0, r"got float; return the tensor before item\(\) or numpy\(\)"),
        (np.float32(2.0), r"got float32; return the tensor before item\(\) or numpy\(\)"),
        (np.zeros(()), r"got ndarray; return the tensor before item\(\) or numpy\(\)"),
        (torch.zeros(4, requires_grad=True), r"got a tensor of shape \(4,\); return its mean"),
        ((2.0, 3), r"got float; return the tensor before item\(\) or numpy\(\)"),
    ],
)
def test_a_whole_output_is_refused_with_what_to_return(result: Any, message: str) -> None:
    """A named tuple of two was taken for a loss and its number of items."""
    with pytest.raises(ValueError, match=rf"must return a mean loss, .*{message}"):
        found(result)


def test_a_loss_without_a_gradient_is_refused_where_it_is_trained_on() -> None:
    """torch says that element 0 of tensors does not require grad; an evaluation needs none."""
    with pytest.raises(ValueError, match="depends on the model's parameters, got one without a gradient"):
        found(a_loss().detach())
    with torch.no_grad():
        loss, count = found(a_loss().detach())
    assert (float(loss or 0), count) == (2.0, 4)


def test_a_batch_over_nothing_has_no_loss() -> None:
    """Whatever number it comes with."""
    for result in (None, (a_loss(), 0), (a_loss() * torch.nan, torch.tensor(0)), (torch.zeros(()), 0)):
        assert found(result) == (None, 0)
