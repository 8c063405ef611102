"""What records show to a reader."""

from __future__ import annotations

import dataclasses
import math

from lrrunner.records import RangeTestResult, Step, Stop, StopReason, Suggestion, Trial, Verdict

NONE = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="raise sweep.end_lr")


def range_test(*stops: Stop) -> RangeTestResult:
    return RangeTestResult(steps=(), stops=stops, suggestion=NONE, world_size=1, global_batch_size=8)


def test_an_interruption_is_the_stop_of_all_repeats() -> None:
    """A killed run must not give an earlier repeat's divergence as its cause."""
    diverged = Stop(reason=StopReason.DIVERGED, step=80)
    interrupted = Stop(reason=StopReason.INTERRUPTED, step=85, ranks=(0, 1), repeat=1)
    assert range_test(diverged, interrupted).stop is interrupted
    assert str(interrupted) == "interrupted at step 85 on ranks 0, 1"


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


def test_every_record_is_shown_in_one_line() -> None:
    """A notebook or a traceback shows records: what is not the default, floats in full."""
    step = Step(step=3, lr=1e-6, loss=0.1 + 0.2, smoothed_loss=math.nan)
    assert repr(step) == "Step(step=3, lr=1e-06, loss=0.30000000000000004)"
    assert repr(Stop(reason=StopReason.DIVERGED, step=9)) == "Stop(reason=diverged, step=9)"
    suggestion = Suggestion(
        lr=1e-3, method="auto", verdict=Verdict.OK, reason="fine", interval=(5e-4, 2e-3), candidates={"auto": 1e-3}
    )
    shown = "Suggestion(lr=0.001, method='auto', verdict=ok, reason='fine', interval=(0.0005, 0.002))"
    assert repr(suggestion) == shown
    trial = Trial(trial=0, lr=1e-3, num_steps=9, num_steps_run=9, loss=1.5)
    assert repr(trial) == "Trial(trial=0, lr=0.001, num_steps=9, num_steps_run=9, loss=1.5)"
    test = RangeTestResult(
        steps=(step,) * 100,
        stops=(Stop(reason=StopReason.DIVERGED, step=9),),
        suggestion=suggestion,
        world_size=2,
        global_batch_size=64,
        trials=(trial,),
    )
    assert repr(test) == (
        "RangeTestResult(suggested lr: 1.0e-03   [5.0e-04, 2.0e-03]   verdict: ok   "
        "(100 steps, 1 confirmation run, 2 ranks, global batch 64))"
    )


def test_a_notebook_shows_a_suggestion_as_a_table() -> None:
    """Whatever the reason holds is text; a suggestion without an LR has a table, too."""
    none = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="<b>flat</b>", candidates={"slide": None})
    assert none._repr_html_() == (
        "<table><tr><th>suggested LR</th><td>none</td></tr><tr><th>interval</th><td>none</td></tr>"
        "<tr><th>verdict</th><td>flat</td></tr><tr><th>reason</th><td>&lt;b&gt;flat&lt;/b&gt;</td></tr>"
        "<tr><th>rule slide</th><td>none</td></tr></table>"
    )
