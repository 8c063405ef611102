"""What sweep and confirmation runs give together."""

from __future__ import annotations

from lrrunner.config.schema import Config, DataConfig
from lrrunner.records import Step, Stop, StopReason, Suggestion, SweepPass, Verdict
from lrrunner.results.suggestion_file import suggestion_content
from lrrunner.sweep.auto_range import Passes
from lrrunner.sweep.confirmation_runs import Trials
from lrrunner.sweep.range_test_result import range_test_result

JOB = Config(model={}, objective={}, optimizer={}, data=DataConfig(global_batch_size=64))
STEPS = (Step(step=0, lr=1e-7, loss=2.0), Step(sweep_pass=1, step=0, lr=1e-7, loss=2.0))
FIRST = Suggestion(lr=2e-3, method="auto", verdict=Verdict.NO_DIVERGENCE, reason="a", interval=(1e-3, 4e-3))
SECOND = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="b", candidates={"slide": 1e-3})


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
    assert content["reason"] == "interrupted at step 30; resume the run for a result"
    assert (content["stop_reason"], content["stop_step"]) == ("interrupted", 30)
    assert [(each["verdict"], each["lr"]) for each in content["passes"]] == [("no_divergence", 2e-3), (None, None)]
    assert str(test.suggestion) == "suggested lr: none   (interrupted at step 30; resume the run for a result)"
