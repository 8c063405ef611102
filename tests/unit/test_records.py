"""What records show to a reader."""

from __future__ import annotations

import dataclasses

from lrrunner.records import RangeTestResult, Stop, StopReason, Suggestion, Verdict

NONE = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="raise sweep.end_lr")


def range_test(*stops: Stop) -> RangeTestResult:
    return RangeTestResult(steps=(), stops=stops, suggestion=NONE, world_size=1, global_batch_size=8)


def test_an_interruption_is_the_stop_of_all_repeats() -> None:
    """A killed run must not give an earlier repeat's divergence as its cause."""
    diverged = Stop(reason=StopReason.DIVERGED, step=80)
    interrupted = Stop(reason=StopReason.INTERRUPTED, step=85, ranks=(0, 1), repeat=1)
    assert range_test(diverged, interrupted).stop is interrupted
    assert str(interrupted) == "interrupted at step 85 on rank 0, 1"


def test_otherwise_it_is_the_earliest_stop() -> None:
    """The curve of all repeats ends where the first of them did."""
    late, early = Stop(reason=StopReason.END_OF_SCHEDULE, step=99), Stop(reason=StopReason.DIVERGED, step=80, repeat=1)
    assert range_test(late, early).stop is early


def test_the_closing_line_has_the_contracts_form() -> None:
    """People paste it, scripts parse it."""
    assert str(NONE) == "suggested lr: none   verdict: flat   (raise sweep.end_lr)"
    found = Suggestion(lr=1.234e-3, method="auto", verdict=Verdict.OK, reason="", interval=(6.1e-4, 2.4e-3))
    assert str(found) == "suggested lr: 1.2e-03   [6.1e-04, 2.4e-03]   verdict: ok"


def test_the_stop_is_that_of_the_pass_of_the_curve() -> None:
    """The stop of an earlier pass has nothing to do with the curve; a signal ends everything."""
    first = Stop(reason=StopReason.END_OF_SCHEDULE, step=99)
    second = Stop(reason=StopReason.DIVERGED, step=80, sweep_pass=1)
    signal = Stop(reason=StopReason.INTERRUPTED, step=3, sweep_pass=1)
    assert range_test(first, second).stop is second
    curve_of_first = dataclasses.replace(range_test(first, signal), curve_pass=0)
    assert curve_of_first.curve_stop is first
    assert curve_of_first.stop is signal


def test_each_parameter_group_has_its_own_suggested_lr() -> None:
    """One LR is suggested; a user with discriminative LRs wants to see all of them."""
    found = dataclasses.replace(NONE, lr=0.5, interval=(0.1, 1.0), verdict=Verdict.OK)
    test = dataclasses.replace(range_test(), suggestion=found, group_ratios=(1.0, 0.1))
    assert test.group_lrs == (0.5, 0.05)
    assert dataclasses.replace(test, suggestion=NONE).group_lrs is None
