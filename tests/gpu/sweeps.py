"""Small sweeps on a device of choice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.step.gradient_probe import GradientProbe
from lrrunner.training.trainable import Trainable, to_device
from tests.multiprocess.sweeps import planned_batches, rank_context, small_model, sweep_plan, trainable

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
"""The dry run, and what it is about."""

DEVICES_OF_LAUNCHES = (pytest.param("cpu", marks=pytest.mark.long), DEVICES[1])
"""The same for tests that start processes."""


def on_device(device: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainable:
    """The small model on a device, fed as a rank feeds it."""
    model = changes.pop("model", None)
    raw: nn.Module = small_model(dtype) if model is None else model
    return trainable(dtype=dtype, model=raw.to(device), to_device=to_device(torch.device(device)), **({} | changes))


def batches_for(device: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Callable[..., Iterator[Any]]:
    """Micro-batches as a loader gives them: pinned where a GPU takes them."""
    planned = planned_batches(dtype=dtype, **changes)

    def batches(repeat: int, first_step: int = 0) -> Iterator[Any]:
        made = list(itertools.islice(planned(repeat, first_step), 200))
        for inputs, targets in made:
            yield (inputs, targets) if device == "cpu" else (inputs.pin_memory(), targets.pin_memory())

    return batches


def sweep_on(device: str, *, dtype: torch.dtype = torch.float32, probed: bool = False, **changes: Any) -> SweepResult:
    """A whole sweep."""
    part = on_device(device, dtype=dtype)
    return run_sweep(
        part,
        sweep_plan(**changes),
        batches_for(device, dtype=dtype),
        context=rank_context(),
        probe=GradientProbe(part.parameters) if probed else None,
    )
