"""The loss that trials are compared on, without other ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.training.collectives import SerialCollective
from lrrunner.training.evaluation import Evaluation, EvaluationError, evaluate, undisturbed
from tests.multiprocess.sweeps import regression_data, small_model, squared_error, trainable
from tests.unit.training.optimizer.unusual_optimizers import AveragingSGD


def batches(*sizes: int) -> list[tuple[Any, int]]:
    """Consecutive samples, each batch counting for its size."""
    inputs, targets = regression_data()
    cuts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [((inputs[a:b], targets[a:b]), b - a) for a, b in itertools.pairwise(cuts)]


def evaluated(part: Any, of: list[tuple[Any, int]], **options: Any) -> Evaluation:
    return evaluate(part, of, collective=SerialCollective(), **options)


def test_the_loss_is_the_mean_over_samples_not_over_batches() -> None:
    """The last batch is smaller than the others."""
    inputs, targets = regression_data()
    expected = squared_error(small_model(), (inputs[:25], targets[:25])).item()
    assert evaluated(trainable(), batches(10, 10, 5)).loss == pytest.approx(expected, rel=1e-12)


def test_a_batch_without_weight_counts_nothing() -> None:
    """Ranks with fewer samples repeat one, so that all ranks run forward equally often."""
    bad = (torch.full((1, 10), math.nan, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert evaluated(trainable(), [*batches(10), (bad, 0)]) == evaluated(trainable(), batches(10))


def test_items_weigh_where_the_objective_counts_them() -> None:
    """1 over 3 items and 2 over 1: 5/4. No items at all: neither 0 nor NaN, but nothing."""
    values = iter([(1.0, 3), (2.0, 1), (math.nan, 0)])

    def objective(model: nn.Module, batch: Any) -> Any:
        value, count = next(values)
        return torch.tensor(value), torch.tensor(count)

    assert evaluated(trainable(objective=objective), batches(5, 5, 5)).loss == 1.25


def test_without_any_item_the_loss_is_nan() -> None:
    """Nothing can be compared."""
    part = trainable(objective=lambda model, batch: (torch.tensor(math.nan), 0))
    assert math.isnan(evaluated(part, batches(5)).loss)


def test_eval_mode_and_no_gradients_inside_and_every_modules_own_mode_afterwards() -> None:
    """Dropout would add noise, batch norm would learn; a frozen part stays in eval mode."""
    model = nn.Sequential(nn.Linear(10, 1), nn.BatchNorm1d(1)).double()
    model[1].eval()
    seen: list[tuple[bool, bool]] = []

    def objective(inner: nn.Module, batch: Any) -> torch.Tensor:
        seen.append((inner.training, torch.is_grad_enabled()))
        return squared_error(inner, batch)

    evaluated(trainable(model=model, objective=objective), batches(5))
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_batch_norm_may_keep_to_its_batch_and_leaves_no_trace() -> None:
    """Its running statistics are those of weights ten steps ago, and in the beginning of no weights at all."""
    model = nn.Sequential(nn.Linear(10, 1), nn.BatchNorm1d(1)).double()
    before = [buffer.clone() for buffer in model.buffers()]
    part = trainable(model=model, objective=lambda inner, batch: inner(batch[0]).square().mean())
    random_state = torch.get_rng_state()
    with undisturbed(part):
        torch.rand(3)
        (only,) = batches(50)
        found = evaluate(part, [only], collective=SerialCollective(), batch_statistics=True)
    assert found.loss == pytest.approx(1.0, rel=1e-3)
    assert found.num_items == 50.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    model[1].eval()  # a batch norm that the user has frozen
    with undisturbed(part):
        frozen = evaluate(part, [only], collective=SerialCollective(), batch_statistics=True)
    assert frozen == evaluated(part, [only])


def test_modes_come_back_after_an_error_too() -> None:
    """The sweep restores its state elsewhere; an evaluation restores the modes that it has set."""

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError("boom")

    part = trainable(objective=objective)
    with pytest.raises(RuntimeError, match="boom"):
        evaluated(part, batches(5))
    assert part.model.training


def test_the_forward_pass_runs_under_autocast() -> None:
    """As the trials are trained."""
    dtypes: list[torch.dtype] = []

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0].float())
        dtypes.append(output.dtype)
        return output.float().mean()

    part = trainable(
        dtype=torch.float32, objective=objective, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    evaluated(part, batches(5))
    assert dtypes == [torch.bfloat16]


def test_a_stop_request_ends_it_after_the_batch() -> None:
    """An evaluation of a minute must not outlast the ten seconds that a signal waits."""
    calls: list[int] = []

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return squared_error(model, batch)

    result = evaluated(trainable(objective=objective), batches(5, 5, 5), stop_requested=lambda: len(calls) == 2)
    assert result.requesting == (0,)
    assert math.isnan(result.loss)
    assert len(calls) == 2


def test_an_optimizer_that_averages_weights_evaluates_the_average() -> None:
    """Schedule-free optimizers train one point and evaluate another; training goes on where it was."""
    part = trainable(optimizer=lambda p: AveragingSGD(p, lr=0.1))
    part.train()
    for _ in range(2):
        squared_error(part.model, batches(10)[0][0]).backward()
        part.optimizer.step()
    before = [p.detach().clone() for p in part.model.parameters()]
    trained = squared_error(part.model, batches(10)[0][0]).item()
    assert evaluated(part, batches(10)).loss != trained
    assert all(torch.equal(p, old) for p, old in zip(part.model.parameters(), before, strict=True))
    assert part.optimizer.param_groups[0]["train_mode"]


def no_loss_in_eval_mode(model: nn.Module, batch: Any) -> torch.Tensor:
    """Detectors return a list of detections there."""
    if not model.training:
        raise AttributeError("'list' object has no attribute 'values'")
    return squared_error(model, batch)


def test_an_objective_that_fails_in_eval_mode_says_which_key_helps() -> None:
    """A bare AttributeError cost a finished sweep its suggestion."""
    part = trainable(objective=no_loss_in_eval_mode)
    with pytest.raises(EvaluationError, match=r"on rank 0: AttributeError: 'list' .* needs train\.eval_mode=false"):
        evaluated(part, batches(4))
    assert part.model.training


def test_such_a_model_is_evaluated_in_train_mode_without_gradients() -> None:
    """What train.eval_mode=false does."""
    part = trainable(objective=no_loss_in_eval_mode, eval_mode=False)
    assert math.isfinite(evaluated(part, batches(4)).loss)
    assert part.model.training
    assert all(parameter.grad is None for parameter in part.model.parameters())
