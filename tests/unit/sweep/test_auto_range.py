"""One pass or several: which ranges are swept, and which curve counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lrrunner.config.schema import Config, SweepConfig, SweepMode
from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.core.range_extension import Extension
from lrrunner.records import Step, Stop, StopReason, Verdict
from lrrunner.sweep.auto_range import Passes, run_passes
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.engine import SweepResult


def u_curve(lr: float) -> float:
    """2.3 at the start, 0.3 around 1e-1, steep beyond 1."""
    x = math.log10(lr)
    return 2.3 - 2 / (1 + math.exp(-3 * (x + 2.5))) + math.exp(min(5 * x, 300.0))


def run_pass_with(loss: Callable[[float], float], *, interrupted_pass: int | None = None) -> Callable[..., SweepResult]:
    """A sweep of a loss that depends on nothing but the LR, stopped where it exceeds 10."""

    def run_pass(number: int, start_lr: float, end_lr: float) -> SweepResult:
        steps = []
        reason = StopReason.END_OF_SCHEDULE
        for i, lr in enumerate(exponential_lr(start_lr=start_lr, end_lr=end_lr, num_steps=100).tolist()):
            steps.append(Step(sweep_pass=number, step=i, lr=lr, loss=loss(lr)))
            if loss(lr) > 10:
                reason = StopReason.DIVERGED
                break
            if number == interrupted_pass and i == 30:
                reason = StopReason.INTERRUPTED
                break
        return SweepResult(tuple(steps), (Stop(reason=reason, step=len(steps) - 1, sweep_pass=number),))

    return run_pass


def passes(run_pass: Callable[..., SweepResult], **sweep: object) -> tuple[Passes, list[Extension]]:
    extensions: list[Extension] = []
    job = Config(sweep=SweepConfig(**sweep))  # type: ignore[arg-type]
    return run_passes(run_pass, job, collective=SerialCollective(), on_extension=extensions.append), extensions


def test_the_class_of_the_optimizer_reaches_the_suggestion() -> None:
    """An LR of Lion lies lower than one of SGD for the same curve, as far as experience goes."""
    lrs = [
        run_passes(run_pass_with(u_curve), Config(), collective=SerialCollective(), optimizer=kind).suggestion.lr or 0.0
        for kind in (OptimizerClass.SIGN, None, OptimizerClass.SGD)
    ]
    assert lrs == sorted(lrs)
    assert len(set(lrs)) == 3


def ranges(result: Passes) -> list[tuple[float, float]]:
    return [(each.start_lr, each.end_lr) for each in result.passes]


def test_a_good_range_is_swept_once() -> None:
    """The default run costs one pass."""
    result, extensions = passes(run_pass_with(u_curve))
    assert ranges(result) == [(1e-7, 10.0)]
    assert extensions == []
    assert result.suggestion.verdict == Verdict.OK


def test_a_range_that_ends_too_low_is_extended_until_it_diverges() -> None:
    """Every record is kept, the last curve counts."""
    result, extensions = passes(run_pass_with(u_curve), end_lr=1e-3)
    assert [low for low, _ in ranges(result)] == [1e-7] * 3
    assert [high for _, high in ranges(result)] == pytest.approx([1e-3, 0.1, 10.0])
    assert [extension.end_lr for extension in extensions] == pytest.approx([0.1, 10.0])
    assert [each.extension for each in result.passes] == [*(extension.reason for extension in extensions), ""]
    assert result.curve_pass == 2
    assert result.suggestion.verdict == Verdict.OK
    assert {step.sweep_pass for step in result.steps} == {0, 1, 2}


def test_there_are_at_most_three_passes() -> None:
    """A curve that is flat over 12 decades has another cause, and the advice still says what to change."""
    result, _ = passes(run_pass_with(lambda lr: 2.3), end_lr=1e-6)
    assert [high for _, high in ranges(result)] == pytest.approx([1e-6, 1e-2, 1e2])
    assert result.suggestion.lr is None
    assert "raise sweep.end_lr" in result.suggestion.reason


def test_a_range_that_begins_too_high_is_extended_downwards() -> None:
    """The loss is above 10 at its second step."""
    result, _ = passes(run_pass_with(u_curve), start_lr=1.5, end_lr=100.0)
    assert ranges(result)[1] == pytest.approx((1.5e-3, 100.0))
    assert result.suggestion.lr is not None
    assert result.curve_pass == len(result.passes) - 1


def test_auto_range_can_be_switched_off() -> None:
    """The range is then the one that the user wrote."""
    result, extensions = passes(run_pass_with(u_curve), end_lr=1e-3, auto_range=False)
    assert ranges(result) == [(1e-7, 1e-3)]
    assert extensions == []


def test_an_extension_that_gives_nothing_costs_nothing() -> None:
    """The loss falls up to 0.1 and jumps beyond the first range; the second pass sees chaos only."""

    calls: list[int] = []
    good, bad = run_pass_with(u_curve), run_pass_with(lambda lr: 2.3 if lr < 1e-4 else 5.0)

    def run_pass(number: int, start_lr: float, end_lr: float) -> SweepResult:
        calls.append(number)
        return (good if number == 0 else bad)(number, start_lr, end_lr)

    result, _ = passes(run_pass, end_lr=0.2)
    assert len(calls) > 1
    assert result.passes[0].suggestion.verdict == Verdict.NO_DIVERGENCE
    assert result.curve_pass == 0
    assert result.suggestion == result.passes[0].suggestion
    assert result.suggestion.lr is not None


def test_an_interrupted_pass_ends_the_sweep_and_leaves_the_earlier_one() -> None:
    """The complete pass counts; no further one is run."""
    result, _ = passes(run_pass_with(u_curve, interrupted_pass=1), end_lr=0.2)
    assert len(result.passes) == 2
    assert result.interruption is not None
    assert (result.interruption.sweep_pass, result.interruption.step) == (1, 30)
    assert result.curve_pass == 0


def test_a_linear_range_is_extended_linearly() -> None:
    """The mode reaches the decision."""
    _, extensions = passes(run_pass_with(lambda lr: 2.3), end_lr=1e-3, mode=SweepMode.linear)
    assert extensions[0].end_lr == pytest.approx(1e-2)  # a decade, not four
