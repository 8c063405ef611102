"""A criterion with parameters of its own, beside a model in DDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lrrunner
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import regression_data, small_model


class ScaledError(nn.Module):
    """A squared error with a trained scale, whose gradient is tiny."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean error."""
        return (1 + 1e-9 * self.scale) * nn.functional.mse_loss(output, target)


class ModelAndCriterion(nn.Module):
    """Both in one module, which DDP wraps as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.criterion = small_model(), ScaledError()

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.criterion(self.model(inputs), targets)


def error_beside(parts: Any, batch: Any) -> Any:
    """The loss of a list of model and criterion."""
    return parts[1](parts[0](batch[0]), batch[1])


def sweeps() -> tuple[str, int]:
    """The message of a call with the criterion beside DDP, and the steps of one with both inside."""
    inputs, targets = regression_data()
    loader = [(inputs[:8], targets[:8]), (inputs[8:16], targets[8:16])]
    options: dict[str, Any] = {"num_steps": 12, "end_lr": 0.1, "auto_range": False}
    beside = nn.ModuleList([DistributedDataParallel(small_model()), ScaledError()])
    message = ""
    try:
        optimizer = torch.optim.SGD(beside.parameters(), lr=0.1)
        lrrunner.range_test(None, beside, optimizer, loader, error_beside, **options)
    except ValueError as error:
        message = str(error)
    inside = DistributedDataParallel(ModelAndCriterion())
    optimizer = torch.optim.SGD(inside.parameters(), lr=0.1)
    result = lrrunner.range_test(None, inside, optimizer, loader, lambda m, b: m(*b), **options)
    return message, len(result.steps)


def test_a_trained_criterion_must_be_wrapped_with_the_model(tmp_path: Path) -> None:
    """Its gradient is too small for the norms to differ, and our own message advised to put it beside."""
    for message, num_steps in on_ranks(sweeps, 2, tmp_path):
        assert "got 1.scale outside, which ranks would train apart; wrap the nn.ModuleList of model" in message
        assert num_steps == 12
