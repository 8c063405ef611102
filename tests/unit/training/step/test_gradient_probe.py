"""The probe measures what the gradients of single samples give, and disturbs nothing."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrrunner.core.noise_scale import noise_scale
from lrrunner.records import Suggestion, Verdict
from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.step.gradient_probe import GradientProbe
from tests.multiprocess.sweeps import (
    planned_batches,
    rank_context,
    regression_data,
    small_model,
    squared_error,
    sweep_plan,
    trainable,
)

SUGGESTION = Suggestion(lr=1.0, method="auto", verdict=Verdict.OK, reason="", interval=(1.0, 1.0))

ALMOST_STILL: dict[str, Any] = {"start_lr": 1e-12, "end_lr": 1e-11}
"""LRs too small to change the gradient of any parameter."""


def brute_force(model: nn.Module) -> tuple[float, float]:
    """Trace of the covariance of single samples' gradients, and the critical batch size, without any estimate."""
    gradients = []
    for x, y in zip(*regression_data(), strict=True):
        model.zero_grad()
        squared_error(model, (x[None], y[None])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    variance = float(torch.stack(gradients).var(0).sum())
    signal = float(torch.stack(gradients).mean(0).square().sum()) - variance / len(gradients)
    return variance, variance / signal


def probed_sweep(part: Any, batches: Any = None, **changes: Any) -> SweepResult:
    batches = batches or planned_batches(global_batch_size=16, accumulation_steps=part.accumulation_steps)
    return run_sweep(
        part,
        sweep_plan(**(ALMOST_STILL | changes)),
        batches,
        context=rank_context(),
        probe=GradientProbe(part.parameters),
    )


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_gives_the_noise_scale_of_single_samples(accumulation: int) -> None:
    """At fixed parameters, where the true value is known sample by sample."""
    variance, truth = brute_force(small_model())
    result = probed_sweep(trainable(accumulation_steps=accumulation, global_batch_size=16))
    found = noise_scale(result.steps, SUGGESTION, beta=0.9, global_batch_size=16)
    assert found.critical_batch_size is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < truth < found.high
    assert truth / 2 < found.low
    assert found.high < truth * 2
    mean = sum(step.gradient_variance or math.nan for step in result.steps) / len(result.steps)
    assert mean == pytest.approx(variance, rel=0.25)


def test_a_probed_step_is_the_same_to_the_last_bit_and_no_hook_stays() -> None:
    """Measuring must not change what is measured; a hook that stays slows the user's own training."""
    part = trainable(accumulation_steps=3, max_grad_norm=0.5, dtype=torch.float32)
    batches = planned_batches(accumulation_steps=3, dtype=torch.float32)
    plain = run_sweep(part, sweep_plan(), batches, context=rank_context())
    probed = probed_sweep(part, batches, start_lr=1e-6, end_lr=10.0)
    assert [(step.loss, step.grad_norm) for step in probed.steps] == [(s.loss, s.grad_norm) for s in plain.steps]
    assert {step.gradient_variance for step in plain.steps} == {None}
    assert not any(parameter._backward_hooks for parameter in part.parameters)


def weighted(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    return squared_error(model, batch), len(batch[0])


def unequal_batches(repeat: int, first_step: int = 0) -> Any:
    """Micro-batches of 1, 0 and 5 samples, in each step the same."""
    inputs, targets = regression_data()
    while True:
        for part in (slice(0, 1), slice(0, 0), slice(1, 6)):
            yield inputs[part], targets[part]


@pytest.mark.parametrize("scale", [None, 2.0**8])
def test_unequal_items_and_a_scaled_loss_are_undone(scale: float | None) -> None:
    """Losses are weighted by their items, and scaled for fp16; clipping comes later. By hand, for one step."""
    model, (inputs, targets) = small_model(), regression_data()
    squares, flat = [], []
    for items in (slice(0, 1), slice(1, 6)):
        model.zero_grad()
        squared_error(model, (inputs[items], targets[items])).backward()
        flat.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        squares.append(float(flat[-1].square().sum()))
    whole = (flat[0] + 5 * flat[1]) / 6
    expected = ((squares[0] + 5 * squares[1]) / 6 - float(whole.square().sum())) * 6 / (2 - 1)
    part = trainable(
        objective=weighted,
        accumulation_steps=3,
        max_grad_norm=1e-3,
        scaler=None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale),
    )
    result = probed_sweep(part, unequal_batches, num_steps=2)
    assert result.steps[0].gradient_variance == pytest.approx(expected, rel=1e-6)


class Checkpointed(nn.Module):
    """Uses its one layer in two reentrant segments: its gradient comes in two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> Any:
        x = x.requires_grad_()
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=True)
        return x[:, :1]


def test_a_gradient_in_several_pieces_is_unknown_not_wrong() -> None:
    """Norms of pieces do not add up to the norm of their sum."""
    part = trainable(model=Checkpointed().double(), accumulation_steps=2, global_batch_size=16)
    result = probed_sweep(part, num_steps=3)
    assert all(
        step.gradient_variance is not None and math.isnan(step.gradient_variance) and step.grad_norm > 0
        for step in result.steps
    )


def test_a_compiled_model_keeps_its_hooks_and_unused_parameters_count_nothing() -> None:
    """Gradients leave compiled code before the hooks; what no loss depends on has none."""
    model = small_model()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    plain = trainable(model=model, accumulation_steps=2, global_batch_size=16)
    compiled = trainable(
        model=cast(nn.Module, torch.compile(model, backend="aot_eager")), accumulation_steps=2, global_batch_size=16
    )
    ours, theirs = (probed_sweep(part, num_steps=3) for part in (compiled, plain))
    expected = [step.gradient_variance for step in theirs.steps]
    assert [step.gradient_variance for step in ours.steps] == pytest.approx(expected, rel=1e-6)
    assert expected[0] is not None
    assert expected[0] > 0
