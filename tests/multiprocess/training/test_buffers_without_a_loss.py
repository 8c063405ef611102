"""A rank without a loss takes part in the broadcast of DDP's buffers, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lrrunner.training.engine import run_sweep
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import planned_batches, rank_context, squared_error, sweep_plan, trainable


class Silent(nn.Module):
    """A model with batch norm whose forward pass can return nothing, as a redirected ``training_step`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)).double()

    def forward(self, inputs: torch.Tensor, *, silent: bool = False) -> torch.Tensor | None:
        output: torch.Tensor = self.layers(inputs)
        return None if silent else output


class Skipping:
    """Has no loss in every third batch of rank 1."""

    def __init__(self, how: str) -> None:
        self._how, self._calls = how, 0

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        self._calls += 1
        if dist.get_rank() != 1 or self._calls % 3:
            return squared_error(model, batch)
        if self._how == "silent":
            return model(batch[0], silent=True)
        return None if self._how == "uncalled" else (squared_error(model, batch) * 0.0, 0)


def swept(how: str) -> list[tuple[float, float]]:
    torch.manual_seed(3)
    own = trainable(model=Silent(), objective=Skipping(how))
    steps = run_sweep(own, sweep_plan(num_steps=12), planned_batches(), context=rank_context()).steps
    return [(step.num_items, step.loss) for step in steps]


@pytest.mark.parametrize("how", ["silent", "uncalled"])
def test_a_rank_without_a_loss_keeps_step_with_the_others(tmp_path: Path, how: str) -> None:
    """One broadcast too many, or one too few, and ranks wait for different things."""
    expected, _ = on_ranks(swept, 2, tmp_path / "zero", "zero")
    assert [items for items, _ in expected] == [48, 48, 24] * 4
    for found in on_ranks(swept, 2, tmp_path / how, how):
        assert found == expected
