"""Confirmation runs on several real ranks are those of one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lrrunner.core.batch_plan import evaluation_batches
from lrrunner.core.confirmation import confirmed
from lrrunner.core.suggestion_rules import suggest
from lrrunner.core.trial_planning import PlannedTrial, next_trial
from lrrunner.records import Stop, StopReason, Suggestion, Training, TrialOutcome
from lrrunner.sweep.confirmation_runs import Trials, TrialSettings, run_trials
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.engine import run_sweep
from lrrunner.training.evaluation import Evaluation, evaluate
from lrrunner.training.trainable import Trainable
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import (
    NUM_SAMPLES,
    planned_batches,
    rank_context,
    regression_data,
    squared_error,
    sweep_plan,
    trainable,
)

WORLDS = (2, 4)


def evaluator(
    part: Trainable,
    *,
    dtype: torch.dtype = torch.float64,
    dataset_size: int = NUM_SAMPLES,
    num_samples: int = 150,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Callable[[], Evaluation]:
    """Evaluates this rank's share of a part of the data."""
    inputs, targets = regression_data(dtype)
    world = collective_for_world()
    share = evaluation_batches(
        dataset_size=dataset_size,
        num_samples=num_samples,
        batch_size=part.micro_batch_size,
        world_size=world.world_size,
        rank=world.rank,
        seed=0,
    )

    def evaluate_now() -> Evaluation:
        batches = (((inputs[batch], targets[batch]), weight) for batch, weight in share)
        return evaluate(part, batches, collective=world, stop_requested=stop_requested)

    return evaluate_now


def whole_run(dtype: torch.dtype, schedule: str) -> tuple[Suggestion, Suggestion, Trials]:
    """Sweep, trials, and what both support."""
    part = trainable(dtype=dtype)
    batches = planned_batches(dtype=dtype)
    result = run_sweep(part, sweep_plan(), batches, context=rank_context())
    sweep = suggest(result.steps, result.stops)
    trials = run_trials(
        TrialSettings(training=Training(schedule=schedule), beta=0.9),
        plan=lambda trials, initial_loss: next_trial(
            sweep, trials, budget_steps=300, training_steps=None, initial_loss=initial_loss
        ),
        trainable=part,
        batches=batches,
        evaluate=evaluator(part, dtype=dtype),
        context=rank_context(),
    )
    return sweep, confirmed(sweep, trials.trials, training=Training(), monitored="training loss").suggestion, trials


def runs_of_all_settings() -> dict[tuple[torch.dtype, str], tuple[Suggestion, Suggestion, Trials]]:
    return {
        (dtype, schedule): whole_run(dtype, schedule)
        for dtype, schedule in ((torch.float64, "constant"), (torch.float64, "cosine"), (torch.float32, "constant"))
    }


@pytest.fixture(scope="module")
def runs_by_world(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Every rank's runs, by world size."""
    folder = tmp_path_factory.mktemp("worlds")
    worlds = {size: on_ranks(runs_of_all_settings, size, folder / str(size)) for size in WORLDS}
    return {1: [runs_of_all_settings()], **worlds}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("world_size", WORLDS)
def test_same_trials_and_same_lr_in_float64(
    runs_by_world: dict[int, list[Any]], world_size: int, schedule: str
) -> None:
    """Law 8, also for what is measured at the end of a trial."""
    _, alone, trials = runs_by_world[1][0][torch.float64, schedule]
    _, split, other = runs_by_world[world_size][0][torch.float64, schedule]
    assert len(trials.trials) >= 3
    for one, two in zip(trials.trials, other.trials, strict=True):
        assert one.lr == pytest.approx(two.lr, rel=1e-6)
        assert one.loss == pytest.approx(two.loss, rel=1e-6)
        assert (one.num_steps, one.outcome) == (two.num_steps, two.outcome)
    assert split.lr == pytest.approx(alone.lr, rel=1e-6)
    assert split.interval == pytest.approx(alone.interval, rel=1e-6)


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_confirmed_lr_is_the_same_to_a_percent_in_float32(
    runs_by_world: dict[int, list[Any]], world_size: int
) -> None:
    """The suggestion must not depend on how many machines were free."""
    _, alone, _ = runs_by_world[1][0][torch.float32, "constant"]
    _, split, _ = runs_by_world[world_size][0][torch.float32, "constant"]
    assert split.lr == pytest.approx(alone.lr, rel=0.01)


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_rank_measured_the_same_bits(runs_by_world: dict[int, list[Any]], world_size: int) -> None:
    """Law 4; only their clocks differ."""
    first, *others = runs_by_world[world_size]
    for other in others:
        for key, (sweep, found, trials) in first.items():
            assert (other[key][0], other[key][1]) == (sweep, found)
            assert [(t.lr, t.loss, t.outcome) for t in other[key][2].trials] == [
                (t.lr, t.loss, t.outcome) for t in trials.trials
            ]


def evaluated_with_few_samples() -> list[tuple[float, int]]:
    """Loss and number of forward passes for sets of 1, 2, 3 and 13 samples, in micro-batches of 2."""
    found = []
    for size in (1, 2, 3, 13):
        calls: list[int] = []

        def objective(model: nn.Module, batch: Any, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            return squared_error(model, batch)

        world_size = dist.get_world_size() if dist.is_initialized() else 1
        model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        part = trainable(model=model, objective=objective, global_batch_size=2 * world_size)
        found.append((evaluator(part, dataset_size=size)().loss, len(calls)))
    return found


def test_fewer_samples_than_ranks_are_counted_once(tmp_path: Path) -> None:
    """DDP broadcasts the buffers of batch norm in each forward: a rank that skipped one would hang the others."""
    alone = evaluated_with_few_samples()
    results = on_ranks(evaluated_with_few_samples, 3, tmp_path)
    for result in results:
        assert [loss for loss, _ in result] == pytest.approx([loss for loss, _ in alone], rel=1e-12)
    assert len({tuple(calls for _, calls in result) for result in results}) == 1


def trial_with_a_failure_on_rank_1(kind: str) -> Trials:
    """NaN in the evaluation of rank 1, or a stop request of rank 1 in the second trial's evaluation."""
    evaluations: list[int] = []
    bad = kind == "nan" and dist.get_rank() == 1

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        broken = bad and not model.training and len(evaluations) == 2
        return squared_error(model, batch) * (math.nan if broken else 1.0)

    part = trainable(objective=objective)
    evaluate_now = evaluator(
        part, stop_requested=lambda: kind == "stop" and dist.get_rank() == 1 and len(evaluations) == 3
    )

    def counted() -> Evaluation:
        evaluations.append(1)
        return evaluate_now()

    return run_trials(
        TrialSettings(training=Training(schedule="constant"), beta=0.9),
        plan=lambda trials, initial_loss: PlannedTrial(0.01, 5) if len(trials) < 3 else None,
        trainable=part,
        batches=planned_batches(),
        evaluate=counted,
        context=rank_context(),
    )


def test_a_nan_in_one_ranks_evaluation_is_everyones(tmp_path: Path) -> None:
    """Ranks that disagree about a trial's end plan different ones and wait for ever."""
    for result in on_ranks(trial_with_a_failure_on_rank_1, 2, tmp_path, "nan"):
        outcomes = [trial.outcome for trial in result.trials]
        assert outcomes == [TrialOutcome.DIVERGED, TrialOutcome.FINISHED, TrialOutcome.FINISHED]


def test_a_stop_request_of_one_rank_ends_an_evaluation_on_all(tmp_path: Path) -> None:
    """And the trial that ended before it is kept."""
    for result in on_ranks(trial_with_a_failure_on_rank_1, 2, tmp_path, "stop"):
        outcomes = [trial.outcome for trial in result.trials]
        assert outcomes == [TrialOutcome.FINISHED, TrialOutcome.INTERRUPTED]
        assert result.interruption == Stop(reason=StopReason.INTERRUPTED, step=4, ranks=(1,), repeat=1_000_000)
