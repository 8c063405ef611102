"""Confirmation runs on one rank: trainings that leave nothing but their measurements."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.records import Step, StopReason, Training, Trial, TrialOutcome
from lrrunner.sweep.confirmation_runs import Plan, Trials, TrialSettings, run_trials
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.evaluation import Evaluation, evaluate
from lrrunner.training.step import train_step
from lrrunner.training.trainable import Trainable
from tests.multiprocess.sweeps import (
    planned_batches,
    rank_context,
    regression_data,
    small_model,
    squared_error,
    trainable,
)
from tests.unit.training.test_engine import overflowing


def one_after_another(*planned: tuple[float, int]) -> Plan:
    """A plan that is fixed from the start."""
    return lambda trials, initial_loss: PlannedTrial(*planned[len(trials)]) if len(trials) < len(planned) else None


class Log:
    """A listener that records everything."""

    def __init__(self) -> None:
        self.planned: list[PlannedTrial] = []
        self.steps: dict[int, list[Step]] = {}
        self.trials: list[Trial] = []

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        self.planned.append(planned)

    def on_trial_step(self, number: int, step: Step) -> None:
        self.steps.setdefault(number, []).append(step)

    def on_trial(self, trial: Trial) -> None:
        self.trials.append(trial)


def on_all_data(part: Trainable) -> Callable[[], Evaluation]:
    return lambda: evaluate(part, [(regression_data(), 192)], collective=SerialCollective())


CONSTANT = Training()


def confirm(
    part: Trainable,
    *planned: tuple[float, int],
    training: Training = CONSTANT,
    stop_requested: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Trials:
    settings: dict[str, Any] = {
        "plan": one_after_another(*planned),
        "evaluate": on_all_data(part),
        "batches": planned_batches(),
    }
    return run_trials(
        TrialSettings(training=training, beta=0.9),
        trainable=part,
        context=rank_context(stop_requested=stop_requested),
        **(settings | options),
    )


def test_a_trial_is_a_plain_training_from_the_initial_state() -> None:
    """Five Adam steps at 0.01, written out: the loss that the trial reports is the one they end with."""
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    stream = planned_batches()(1_000_000)
    for _ in range(5):
        optimizer.zero_grad()
        squared_error(model, next(stream)).backward()
        optimizer.step()
    expected = squared_error(model, regression_data()).item()
    for _ in range(2):
        (trial,) = confirm(trainable(), (0.01, 5)).trials
        assert trial.loss == pytest.approx(expected, rel=1e-12)
    assert (trial.trial, trial.lr, trial.num_steps, trial.num_steps_run) == (0, 0.01, 5, 5)
    assert trial.outcome == TrialOutcome.FINISHED


def test_every_trial_sees_the_same_data_from_the_same_state() -> None:
    """Two trials at one LR give the same result; a third one between them changes nothing."""
    log = Log()
    first, other, again = confirm(trainable(), (0.01, 8), (0.3, 8), (0.01, 8), listener=log).trials
    assert first.loss == again.loss != other.loss
    assert [step.loss for step in log.steps[0]] == [step.loss for step in log.steps[2]]
    assert log.steps[0][0].loss == log.steps[1][0].loss
    assert log.trials == [first, other, again]


def test_the_schedule_is_a_complete_one_for_each_length() -> None:
    """Half a cosine in the trial's own number of steps: literal rates of a schedule of 4."""
    log = Log()
    confirm(trainable(), (1.0, 4), training=Training(schedule="cosine", num_steps=400), listener=log)
    assert [round(step.lr, 3) for step in log.steps[0]] == [1.0, 0.854, 0.5, 0.146]


def test_a_trial_warms_up_over_the_training_s_share_of_its_steps() -> None:
    """A trial whose warm-up is as long as the training's would never reach its LR, one without it would diverge."""
    log = Log()
    training = Training(schedule="linear", num_steps=30, warmup_steps=10)
    confirm(trainable(), (1.0, 6), training=training, listener=log)
    assert [step.lr for step in log.steps[0]] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_trial_that_goes_non_finite_counts_as_infinite() -> None:
    """Its plan goes on with the next one."""
    diverged, finished = confirm(trainable(optimizer=lambda p: torch.optim.SGD(p, lr=1.0)), (1e9, 50), (0.01, 5)).trials
    assert (diverged.outcome, diverged.loss) == (TrialOutcome.DIVERGED, math.inf)
    assert 1 <= diverged.num_steps_run < 50
    assert finished.outcome == TrialOutcome.FINISHED


def test_a_trial_with_a_non_finite_evaluation_has_diverged() -> None:
    """Its last update may have been the fatal one."""
    losses = iter([1.0, math.nan, 0.5])
    trials = confirm(trainable(), (0.01, 3), (0.02, 3), evaluate=lambda: Evaluation(next(losses))).trials
    assert [(trial.outcome, trial.loss) for trial in trials] == [
        (TrialOutcome.DIVERGED, math.inf),
        (TrialOutcome.FINISHED, 0.5),
    ]


def test_the_plan_sees_what_was_measured() -> None:
    """It decides on results."""
    seen: list[list[float]] = []

    def plan(trials: Sequence[Trial], initial_loss: float) -> PlannedTrial | None:
        seen.append([trial.lr for trial in trials])
        return PlannedTrial(0.01 * (1 + len(trials)), 2) if len(trials) < 2 else None

    confirm(trainable(), plan=plan)
    assert seen == [[], [0.01], [0.01, 0.02]]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_without_a_finite_loss_before_any_step_nothing_is_compared(loss: float) -> None:
    """Every trial would count as diverged, and the learning rate would be blamed for the data."""
    result = confirm(trainable(), (0.01, 3), evaluate=lambda: Evaluation(loss))
    assert result.trials == ()
    assert "check data.val" in result.failure_reason


def test_an_empty_plan_is_reported() -> None:
    """A budget may be too small for a single run."""
    assert confirm(trainable()).failure_reason == "the budget allows no confirmation run; raise confirm.budget_steps"


@pytest.mark.parametrize("request_at", [0, 4, 12])
def test_a_stop_request_keeps_the_trials_that_ended(request_at: int) -> None:
    """The interrupted one measured nothing; the run still reports."""
    log = Log()
    trials, stop, _, _ = confirm(
        trainable(), (0.01, 10), (0.02, 10), (0.03, 10),
        listener=log, stop_requested=lambda: sum(map(len, log.steps.values())) >= request_at,
    )  # fmt: skip
    assert stop is not None
    assert stop.reason == StopReason.INTERRUPTED
    assert [trial.outcome for trial in trials] == [TrialOutcome.FINISHED] * (request_at // 10) + [
        TrialOutcome.INTERRUPTED
    ]
    assert math.isnan(trials[-1].loss)
    assert log.trials == list(trials)


def test_a_stop_request_during_an_evaluation_ends_the_trials() -> None:
    """Also before the first trial, where nothing was measured."""
    answers = iter([Evaluation(1.0), Evaluation(0.9), Evaluation(math.nan, (0,))])
    trials, stop, _, _ = confirm(trainable(), (0.01, 3), (0.02, 3), (0.03, 3), evaluate=lambda: next(answers))
    assert [trial.outcome for trial in trials] == [TrialOutcome.FINISHED, TrialOutcome.INTERRUPTED]
    assert stop is not None
    assert stop.ranks == (0,)
    first = confirm(trainable(), (0.01, 3), evaluate=lambda: Evaluation(math.nan, (0,)))
    assert first.trials == ()
    assert first.interruption is not None


def test_reading_late_changes_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the last step is read before the evaluation, and a trial that diverges ends where it did."""
    planned = ((0.01, 8), (1e9, 50))
    prompt = confirm(trainable(optimizer=lambda p: torch.optim.SGD(p, lr=1.0)), *planned).trials
    monkeypatch.setattr(train_step, "reads_late", lambda *args, **kwargs: True)
    late = confirm(trainable(optimizer=lambda p: torch.optim.SGD(p, lr=1.0)), *planned).trials
    assert [dataclasses.replace(trial, elapsed_s=0.0) for trial in late] == [
        dataclasses.replace(trial, elapsed_s=0.0) for trial in prompt
    ]


def test_a_skipped_step_of_a_trial_is_tried_again() -> None:
    """Law 9: the first fp16 steps find the loss scale, and the schedule is still completed."""
    part, _ = overflowing(times=2)
    log = Log()
    (trial,) = confirm(
        part,
        (0.01, 4),
        batches=planned_batches(dtype=torch.float32),
        evaluate=lambda: Evaluation(1.0),
        listener=log,
    ).trials
    assert (trial.outcome, trial.num_steps_run) == (TrialOutcome.FINISHED, 4)
    assert [(step.step, step.skipped) for step in log.steps[0]][:4] == [(0, True), (0, True), (0, False), (1, False)]


class Touchy(nn.Module):
    """Batch norm, dropout, and an error on demand."""

    def __init__(self, fail_at: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)).double()
        self.fail_at, self.calls = fail_at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("boom")
        return self.layers(x)


@pytest.mark.parametrize("fail_at", [None, 1, 4, 7])
def test_everything_is_restored_bit_for_bit(fail_at: int | None) -> None:
    """Weights, running statistics, optimizer state, modes and random numbers, whatever raises."""
    part = trainable(model=Touchy(fail_at))
    part.model.train()
    squared_error(part.model.get_submodule("layers"), next(planned_batches()(0))).backward()
    part.optimizer.step()
    part.model.get_submodule("layers.2").eval()
    before = copy.deepcopy((part.model.state_dict(), part.optimizer.state_dict()))
    modes, rng = [module.training for module in part.model.modules()], torch.get_rng_state()
    try:
        trials = confirm(part, (0.1, 5), (0.2, 5))
    except RuntimeError:
        assert fail_at == 1
    else:  # alone, a training that fails is a reason, as the evaluation of the first trial is, the seventh pass
        assert ("boom" in trials.failure_reason) == (fail_at in (4, 7))
    after = (part.model.state_dict(), part.optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert str(before[1]) == str(after[1])
    assert [module.training for module in part.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
