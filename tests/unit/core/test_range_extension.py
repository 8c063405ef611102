"""Which curves ask for another range, and which of several curves is believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lrrunner.core.range_extension import Extension, curve_pass, extension, with_end_named
from lrrunner.core.suggestion_rules import suggest
from lrrunner.records import Step, Stop, StopReason, Suggestion, Verdict
from tests.unit.core.curves import (
    FloatArray,
    diverged,
    ended,
    fall_and_blow_up,
    noise,
    non_finite,
    records,
    sigmoid_fall,
    sweep_lrs,
)


def decided(steps: Sequence[Step], stops: Sequence[Stop], *, linear: bool = False) -> Extension | None:
    """The extension of a sweep that ran over its own records' range."""
    suggestion = suggest(steps, stops, beta=0.9)
    return extension(steps, stops, suggestion, start_lr=steps[0].lr, end_lr=steps[-1].lr, linear=linear, beta=0.9)


def noisy(losses: FloatArray) -> FloatArray:
    return np.asarray(losses + noise(1, len(losses), std=0.01))


def test_a_good_curve_is_not_swept_again() -> None:
    """Two more sweeps would cost what they cannot return."""
    lrs = sweep_lrs()
    assert decided(records(lrs, noisy(fall_and_blow_up(lrs))), diverged()) is None


@pytest.mark.parametrize("high", [-3.0, -1.0])
def test_a_curve_that_still_falls_gets_a_larger_end(high: float) -> None:
    """Two decades: the divergence at 10**-0.5 and beyond comes into sight."""
    lrs = sweep_lrs(high=high)
    found = decided(records(lrs, noisy(sigmoid_fall(lrs))), ended())
    assert found is not None
    assert (found.start_lr, found.end_lr) == pytest.approx((1e-7, 10.0 ** (high + 2)))
    assert found.reason == f"the loss does not diverge up to {10.0**high:.1e}"


def test_a_flat_curve_gets_a_larger_end() -> None:
    """The learning rates may all have been too small: four decades, for fall and divergence."""
    lrs = sweep_lrs(high=-4.0)
    found = decided(records(lrs, noisy(np.full(100, 2.3))), ended())
    assert found is not None
    assert (found.start_lr, found.end_lr) == pytest.approx((1e-7, 1.0))
    assert found.reason == "the loss is flat up to 1.0e-04"


def test_no_sweep_goes_beyond_1e4() -> None:
    """A loss that no learning rate moves has another fault than its range."""
    flat = np.full(100, 2.3)
    found = decided(records(sweep_lrs(high=3.0), flat), ended())
    assert found is not None
    assert found.end_lr == 1e4
    assert decided(records(sweep_lrs(high=4.0), flat), ended()) is None


def test_a_curve_that_rises_from_the_start_gets_a_smaller_start() -> None:
    """Three decades below a first LR that was too high already."""
    lrs = sweep_lrs(low=-1.0, high=2.0)
    losses = 2.3 + np.expm1(2 * (np.log10(lrs) + 1))
    found = decided(records(lrs, noisy(losses))[:60], diverged(59))
    assert found is not None
    assert found.start_lr == pytest.approx(1e-4)
    assert found.reason == "the loss rises from the start"


def test_a_curve_that_explodes_at_once_and_settles_gets_a_smaller_start() -> None:
    """Adam at 1: 2.3, then 1800, then about 4: level and noise of the curve are those of the explosion."""
    losses = np.concatenate([[2.31], 4 + 1800 * np.exp(-np.arange(99.0))])
    steps = records(sweep_lrs(low=0.0, high=4.0), losses + np.abs(noise(2, std=0.5)))
    found = decided(steps, diverged())
    assert found is not None
    assert found.start_lr == pytest.approx(1e-3)
    assert found.reason == "no loss is below the first one"


@pytest.mark.parametrize("later", [2.5, 2.2, 0.5], ids=["above", "a little below", "far below"])
def test_a_start_that_explodes_is_found_whatever_the_later_losses_do(later: float) -> None:
    """The loss of the initial weights, 2.3; then thousands, which settle near it: sweep.start_lr=1 on digits."""
    losses = later + noise(1, 100, std=0.1)
    losses[:12] = [2.3, 8700, 5100, 1700, 1500, 275, 29, 23, 9.9, 19, 33, 3.3]
    found = decided(records(sweep_lrs(low=0.0, high=2.0), losses), ended())
    assert found is not None
    assert found.start_lr == pytest.approx(1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_noise_at_the_start_is_no_explosion(seed: int) -> None:
    """Flat and noisy curves, and falls that begin with a single outlier, keep their start."""
    lrs = sweep_lrs()
    flat = 2.3 + noise(seed, 100, std=0.5)
    found = decided(records(lrs, flat), ended())
    assert found is None or found.start_lr == pytest.approx(1e-7)
    outlier = noisy(fall_and_blow_up(lrs))
    outlier[seed % 10] = 50.0
    found = decided(records(lrs, outlier), diverged())
    assert found is None or found.start_lr == pytest.approx(1e-7)


def test_a_curve_that_is_flat_for_decades_before_it_rises_is_left() -> None:
    """Smaller learning rates would be as flat."""
    lrs = sweep_lrs()
    losses = 2.3 + np.expm1(6 * np.maximum(np.log10(lrs) + 0.5, 0))
    steps = records(lrs, noisy(losses))
    assert suggest(steps, diverged()).verdict == Verdict.NO_DESCENT
    assert decided(steps, diverged()) is None


@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_a_loss_that_explodes_at_once_gets_a_smaller_start(step: int) -> None:
    """The first update was too large."""
    steps = records(sweep_lrs(low=0.0, high=4.0), [*([2.3] * step), np.inf])
    found = decided(steps, non_finite(step))
    assert found is not None
    assert found.start_lr == pytest.approx(1e-3)


def test_a_loss_that_is_not_finite_before_any_update_is_left() -> None:
    """Neither data nor initial weights know the learning rate."""
    steps = records(sweep_lrs(), [np.nan])
    assert suggest(steps, non_finite(0)).verdict == Verdict.NON_FINITE_AT_START
    assert decided(steps, non_finite(0)) is None


def test_a_curve_that_falls_from_its_first_step_gets_a_smaller_start() -> None:
    """Its level is not the initial one, so the begin of the fall cannot be seen."""
    lrs = sweep_lrs(low=-3.0, high=1.0)
    found = decided(records(lrs, noisy(fall_and_blow_up(lrs, at=-3.0))), diverged())
    assert found is not None
    assert (found.start_lr, found.end_lr) == pytest.approx((1e-6, 10.0))
    assert found.reason == "the loss falls from the first learning rate 1.0e-03 on"


def test_both_ends_may_be_wrong_at_once() -> None:
    """One more sweep, not two."""
    lrs = sweep_lrs(low=-3.5, high=-2.0)
    found = decided(records(lrs, noisy(sigmoid_fall(lrs))), ended())
    assert found is not None
    assert (found.start_lr, found.end_lr) == pytest.approx((10**-6.5, 1.0))
    assert " and the loss does not diverge up to 1.0e-02" in found.reason


def test_noise_and_interruptions_are_left() -> None:
    """Another range does not help against the one, and nobody wants it after the other."""
    lrs = sweep_lrs(high=-3.0)
    loud = records(lrs, 2.3 + noise(1, std=1.0))
    assert suggest(loud, ended()).verdict == Verdict.TOO_NOISY
    assert decided(loud, ended()) is None
    interrupted = [Stop(reason=StopReason.INTERRUPTED, step=99)]
    assert decided(records(lrs, noisy(sigmoid_fall(lrs))), interrupted) is None


def test_few_steps_are_no_reason_to_go_down() -> None:
    """sweep.num_steps is at fault."""
    lrs = sweep_lrs(5)
    assert decided(records(lrs, sigmoid_fall(lrs)), ended(4)) is None


def test_a_linear_sweep_moves_as_a_whole_by_a_decade() -> None:
    """It always falls from its first step, and two decades up would put all it has seen on one step."""
    lrs = np.linspace(1e-4, 1e-2, 100)
    falling = decided(records(lrs, noisy(sigmoid_fall(lrs))), ended(), linear=True)
    assert falling is not None
    assert (falling.start_lr, falling.end_lr) == pytest.approx((1e-4, 1e-1))
    exploding = decided(records(lrs, [2.3, 9.0, np.inf]), non_finite(2), linear=True)
    assert exploding is not None
    assert (exploding.start_lr, exploding.end_lr) == pytest.approx((1e-5, lrs[2] / 10))


def verdict(lr: float | None, of: Verdict) -> Suggestion:
    return Suggestion(lr=lr, method="auto", verdict=of, reason="")


OK, OPEN, NONE = verdict(1e-3, Verdict.OK), verdict(1e-2, Verdict.NO_DIVERGENCE), verdict(None, Verdict.NO_DESCENT)


@pytest.mark.parametrize(
    ("suggestions", "interrupted", "expected"),
    [
        ([OPEN], False, 0),
        ([OPEN, OK], False, 1),
        ([OK, OK], False, 1),
        ([OK, OPEN], False, 0),
        ([OK, NONE], False, 0),
        ([OPEN, NONE, NONE], False, 0),
        ([NONE, NONE], False, 1),
        ([OPEN, OK], True, 0),
        ([NONE, OPEN], True, 1),
        ([NONE, NONE], True, 0),
    ],
)
def test_the_best_pass_is_believed(suggestions: list[Suggestion], interrupted: bool, expected: int) -> None:
    """An extension that goes wrong must not cost the LR that the first pass gave."""
    assert curve_pass(suggestions, interrupted=interrupted) == expected


def test_noise_that_may_hide_a_range_that_ends_too_low_names_its_end() -> None:
    """With end_lr=1e-3 and a batch of four, only repeats and batch size were named."""
    loud = records(sweep_lrs(high=-3.0), 2.3 + noise(1, std=1.0))
    found = suggest(loud, ended())
    named = with_end_named(found, ended(), end_lr=1e-3)
    assert named.reason == f"{found.reason}; sweep.end_lr=1.0e-03 may also be too low to move the loss: raise it"
    assert with_end_named(found, ended(), end_lr=10.0) == found
    assert with_end_named(found, diverged(), end_lr=1e-3) == found


def test_other_verdicts_name_the_end_by_themselves() -> None:
    """Flat and without divergence say what to raise; a good curve needs no remark."""
    lrs = sweep_lrs(high=-3.0)
    for losses in (np.full(100, 2.3), sigmoid_fall(lrs)):
        found = suggest(records(lrs, noisy(losses)), ended())
        assert "raise sweep.end_lr" in found.reason
        assert with_end_named(found, ended(), end_lr=1e-3) == found
