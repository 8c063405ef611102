"""A script without Accelerate that calls the range test on the small model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrrunner
from tests.multiprocess.sweeps import regression_data, small_model, squared_error


def loader(**options: Any) -> DataLoader[Any]:
    """Shuffled batches of the regression data."""
    return DataLoader(TensorDataset(*regression_data()), **({"batch_size": 48, "shuffle": True} | options))


def swept(
    model: nn.Module | None = None, optimizer: Any = None, loss_fn: Any = squared_error, **options: Any
) -> lrrunner.RangeTest:
    """The result of a range test, one pass from 1e-6 unless ``options`` say otherwise."""
    model = small_model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3) if optimizer is None else optimizer
    batches = options.pop("train_loader", None) or loader()
    settings: dict[str, Any] = {"start_lr": 1e-6, "auto_range": False}
    return lrrunner.range_test(None, model, optimizer, batches, loss_fn, **(settings | options))


def losses(result: lrrunner.RangeTest) -> list[float]:
    """The loss of each step."""
    values: list[float] = result.records["loss"].tolist()
    return values
