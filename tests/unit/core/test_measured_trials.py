"""The run with the lowest loss, and whether the suggestion was measured at all."""

from __future__ import annotations

import math

import pytest

from lrrunner.core.measured_trials import best_measured_trial, is_outside_trials
from lrrunner.records import (
    Confirmation,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    Trial,
    TrialOutcome,
    Verdict,
)


def confirmed(lr: float, *losses: float, measured_steps: int | None = 9) -> RangeTestResult:
    """A range test whose trials, at 1e-3, 2e-3, 4e-3, ..., ended with these losses."""
    sweep = Suggestion(lr=lr, method="auto", verdict=Verdict.OK, reason="", interval=(lr / 2, lr * 2))
    confirmation = Confirmation(
        schedule="cosine", monitored="loss", horizon=None, budget_steps=9, sweep=sweep, measured_steps=measured_steps
    )
    outcomes = [TrialOutcome.FINISHED if math.isfinite(loss) else TrialOutcome.DIVERGED for loss in losses]
    trials = tuple(
        Trial(trial=i, lr=1e-3 * 2**i, num_steps=9, num_steps_run=9, loss=loss, outcome=outcome)
        for i, (loss, outcome) in enumerate(zip(losses, outcomes, strict=True))
    )
    return RangeTestResult(
        steps=(Step(step=0, lr=1e-7, loss=2.0),),
        stops=(Stop(reason=StopReason.DIVERGED, step=50),),
        suggestion=sweep,
        world_size=1,
        global_batch_size=64,
        trials=trials,
        confirmation=confirmation,
    )


def test_the_best_run_is_below_every_lr_that_diverged() -> None:
    """One that survives above is luck, and not what is suggested from."""
    best = best_measured_trial(confirmed(1e-3, 0.5, 0.4, math.inf, 0.1))
    assert best is not None
    assert (best.lr, best.loss) == (2e-3, 0.4)


def test_runs_that_confirmed_nothing_have_no_best_one() -> None:
    """The suggestion is then the sweep's own."""
    assert best_measured_trial(confirmed(1e-3, 0.5, 0.4, measured_steps=None)) is None
    assert best_measured_trial(confirmed(1e-3, math.inf)) is None


@pytest.mark.parametrize(("lr", "is_outside"), [(9e-4, True), (1e-3, False), (3e-3, False), (5e-3, True)])
def test_a_suggestion_outside_all_lrs_tried_is_recognised(lr: float, is_outside: bool) -> None:
    """It is an extrapolation, whatever its interval."""
    assert is_outside_trials(confirmed(lr, 0.5, 0.4, 0.6)) is is_outside
    assert not is_outside_trials(confirmed(lr))
