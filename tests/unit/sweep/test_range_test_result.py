"""What sweep and confirmation runs give together."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lrrunner.config.schema import Config, DataConfig
from lrrunner.records import Step, Stop, StopReason, Suggestion, SweepPass, Trial, TrialOutcome, Verdict
from lrrunner.results.suggestion_file import suggestion_content
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials
from lrrunner.sweep.range_test_result import range_test_result

JOB = Config(model={}, objective={}, optimizer={}, data=DataConfig(global_batch_size=64))
STEPS = (Step(step=0, lr=1e-7, loss=2.0), Step(sweep_pass=1, step=0, lr=1e-7, loss=2.0))
FIRST = Suggestion(lr=2e-3, method="auto", verdict=Verdict.NO_DIVERGENCE, reason="a", interval=(1e-3, 4e-3))
SECOND = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="b", candidates={"slide": 1e-3})
SECOND = dataclasses.replace(SECOND, expected_regret=0.1, evidence={"minimum": {"lr": 1e-3, "weight": 1.0}})


def test_an_interrupted_sweep_has_no_verdict() -> None:
    """What half a curve looks like ("flat", "no divergence") is no finding; the complete pass before it stays."""
    stops = (
        Stop(reason=StopReason.END_OF_SCHEDULE, step=99),
        Stop(reason=StopReason.INTERRUPTED, step=30, sweep_pass=1),
    )
    passes = (
        SweepPass(start_lr=1e-7, end_lr=10.0, suggestion=FIRST, extension="no divergence"),
        SweepPass(start_lr=1e-7, end_lr=1e3, suggestion=SECOND),
    )
    test = range_test_result(
        JOB,
        Passes(STEPS, stops, passes, curve_pass=0),
        Trials(),
        steps=STEPS,
        world_size=1,
        group_ratios=(1.0,),
        lr_remark="",
    )
    content = suggestion_content(test)
    assert (content["lr"], content["verdict"], content["interval"], content["candidates"]) == (None, None, None, {})
    assert (content["expected_regret"], content["evidence"]) == (None, {})
    assert content["reason"] == "interrupted at step 30; resume the run for a result"
    assert (content["stop_reason"], content["stop_step"]) == ("interrupted", 30)
    assert [(each["verdict"], each["lr"]) for each in content["passes"]] == [("no_divergence", 2e-3), (None, None)]
    assert str(test.suggestion) == "suggested lr: none   (interrupted at step 30; resume the run for a result)"


@pytest.mark.parametrize(("losses", "lr"), [((1.5, 1.0, 1.5), 1e-2), ((2.5, 2.5, 2.6), None)], ids=["found", "nothing"])
def test_trials_may_find_the_lr_that_noise_hid_from_the_sweep(losses: tuple[float, ...], lr: float | None) -> None:
    """They begin at what is usual for the optimizer; that they began there makes it no suggestion."""
    sweep = Suggestion(lr=None, method="auto", verdict=Verdict.TOO_NOISY, reason="noise", candidates={"auto": None})
    start = dataclasses.replace(sweep, lr=1e-2, interval=(2e-3, 5e-2), reason="noise; began at a usual LR")
    trials = [
        Trial(trial=i, lr=at, num_steps=100, num_steps_run=100, loss=loss)
        for i, (at, loss) in enumerate(zip((3e-3, 1e-2, 3e-2), losses, strict=True))
    ]
    test = range_test_result(
        JOB,
        Passes(
            STEPS[:1],
            (Stop(reason=StopReason.END_OF_SCHEDULE, step=99),),
            (SweepPass(start_lr=1e-7, end_lr=10.0, suggestion=sweep),),
            curve_pass=0,
            trial_start=start,
        ),
        Trials(tuple(trials), initial_loss=2.3),
        steps=STEPS[:1],
        world_size=1,
        group_ratios=(1.0,),
        lr_remark="",
    )
    content = suggestion_content(test)
    assert content["confirmation"]["sweep_lr"] is None
    if lr is None:
        assert (test.suggestion.lr, test.suggestion.verdict) == (None, Verdict.TOO_NOISY)
        assert test.suggestion.reason.startswith("noise; not confirmed: no run brought the training loss below")
    else:
        assert test.suggestion.lr == pytest.approx(lr, rel=0.3)
        assert test.suggestion.verdict == Verdict.OK


def _after_trials(sweep: Suggestion, trials: Trials, *, start: Suggestion | None = None) -> Suggestion:
    """What is suggested after a complete pass and these trials."""
    passes = Passes(
        STEPS[:1],
        (Stop(reason=StopReason.END_OF_SCHEDULE, step=99),),
        (SweepPass(start_lr=1e-7, end_lr=10.0, suggestion=sweep),),
        curve_pass=0,
        trial_start=sweep if start is None else start,
    )
    return range_test_result(
        JOB, passes, trials, steps=STEPS[:1], world_size=1, group_ratios=(1.0,), lr_remark=""
    ).suggestion


def test_where_trials_began_is_no_suggestion_before_one_has_ended() -> None:
    """An interruption in the first one leaves what the sweep says: nothing."""
    sweep = Suggestion(lr=None, method="auto", verdict=Verdict.TOO_NOISY, reason="noise")
    start = dataclasses.replace(sweep, lr=1e-2, interval=(2e-3, 5e-2))
    trial = Trial(trial=0, lr=1e-2, num_steps=100, num_steps_run=5, loss=math.nan, outcome=TrialOutcome.INTERRUPTED)
    stop = Stop(reason=StopReason.INTERRUPTED, step=4)
    found = _after_trials(sweep, Trials((trial,), interruption=stop, initial_loss=2.3), start=start)
    assert (found.lr, found.verdict) == (None, Verdict.TOO_NOISY)
    assert found.reason == "noise; confirmation was interrupted after 0 runs"


@pytest.mark.parametrize(("diverged_at", "lr", "interval"), [(2e-3, None, None), (3e-3, 2e-3, (1e-3, 3e-3))])
def test_an_lr_that_diverged_is_not_suggested_where_a_later_run_failed(
    diverged_at: float, lr: float | None, interval: tuple[float, float] | None
) -> None:
    """What was seen to diverge stays excluded, also where the comparison could not be finished."""
    trial = Trial(trial=0, lr=diverged_at, num_steps=100, num_steps_run=5, loss=math.inf, outcome=TrialOutcome.DIVERGED)
    found = _after_trials(FIRST, Trials((trial,), failure_reason="a run failed", initial_loss=2.3))
    assert (found.lr, found.interval) == (lr, interval)
    assert "a run failed" in found.reason
