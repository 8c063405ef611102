from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.config.schema import ScheduleName
from lrrunner.core.lr_schedules import (
    DECAYS,
    SWEEP_SCHEDULES,
    FloatArray,
    exponential_lr,
    linear_lr,
    training_lrs,
    trial_warmup_steps,
)
from tests.unit.core.curves import PROPERTY

Schedule = Callable[..., FloatArray]
both_schedules = pytest.mark.parametrize("schedule", [exponential_lr, linear_lr])

starts = st.floats(min_value=1e-12, max_value=1e3)
growths = st.floats(min_value=1.01, max_value=1e12)
lengths = st.integers(min_value=2, max_value=500)


def test_exponential_schedule_from_1e_7_to_10_in_nine_steps_is_the_powers_of_ten() -> None:
    """Catalogue row 22: the default range must give the LRs that people expect to read on the axis."""
    lrs = exponential_lr(start_lr=1e-7, end_lr=10.0, num_steps=9)
    assert lrs == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], rel=1e-12)


def test_linear_schedule_has_equal_distances() -> None:
    """Catalogue row 22: an uneven first gap (Lightning) shifts every later step."""
    lrs = linear_lr(start_lr=0.25, end_lr=2.25, num_steps=5)
    assert lrs.tolist() == [0.25, 0.75, 1.25, 1.75, 2.25]


def test_two_steps_are_the_two_ends() -> None:
    """The shortest schedule has nothing between its ends; i / (N - 1) must not divide by zero there."""
    assert exponential_lr(start_lr=0.1, end_lr=0.7, num_steps=2).tolist() == [0.1, 0.7]
    assert linear_lr(start_lr=0.1, end_lr=0.7, num_steps=2).tolist() == [0.1, 0.7]


@both_schedules
@PROPERTY
@given(start=starts, growth=growths, num_steps=lengths)
def test_ends_are_met_to_the_last_bit_with_exactly_n_steps(
    schedule: Schedule, start: float, growth: float, num_steps: int
) -> None:
    """Catalogue rows 20 and 22: fastai never reaches end_lr, ignite overshoots it; what is asked must be used."""
    lrs = schedule(start_lr=start, end_lr=start * growth, num_steps=num_steps)
    assert lrs.shape == (num_steps,)
    assert lrs.dtype == np.float64
    assert (lrs[0], lrs[-1]) == (start, start * growth)


@both_schedules
@PROPERTY
@given(start=starts, growth=growths, num_steps=lengths)
def test_schedule_increases_strictly(schedule: Schedule, start: float, growth: float, num_steps: int) -> None:
    """A curve is a function of the LR only if no two steps share one, forced ends included."""
    lrs = schedule(start_lr=start, end_lr=start * growth, num_steps=num_steps)
    assert (np.diff(lrs) > 0).all()


@PROPERTY
@given(start=starts, growth=growths, num_steps=lengths)
def test_exponential_lrs_keep_one_ratio(start: float, growth: float, num_steps: int) -> None:
    """Catalogue row 22: equal ratios mean equal weight for every decade."""
    lrs = exponential_lr(start_lr=start, end_lr=start * growth, num_steps=num_steps)
    gap = math.log(growth) / (num_steps - 1)
    assert np.diff(np.log(lrs)) == pytest.approx(np.full(num_steps - 1, gap), abs=1e-11)


@PROPERTY
@given(start=starts, growth=growths, num_steps=lengths)
def test_linear_lrs_keep_one_distance(start: float, growth: float, num_steps: int) -> None:
    """Catalogue row 22: the linear mode must be linear up to its last step."""
    lrs = linear_lr(start_lr=start, end_lr=start * growth, num_steps=num_steps)
    gap = (start * growth - start) / (num_steps - 1)
    assert np.diff(lrs) == pytest.approx(np.full(num_steps - 1, gap), abs=1e-12 * start * growth)


@both_schedules
def test_extreme_bounds_neither_overflow_nor_warn(schedule: Schedule) -> None:
    """(end / start) itself overflows here, so the schedule must not be built from that quotient."""
    lrs = schedule(start_lr=1e-300, end_lr=1e300, num_steps=7)
    assert np.isfinite(lrs).all()
    assert (np.diff(lrs) > 0).all()


@both_schedules
@pytest.mark.parametrize("start", [0.0, -1e-3, math.nan, math.inf, -math.inf])
def test_start_must_be_finite_and_positive(schedule: Schedule, start: float) -> None:
    """Catalogue row 32: start 0 divides by zero, and NaN passes every naive comparison."""
    with pytest.raises(ValueError, match=r"start_lr must be finite and above 0, got .*; try 1e-7"):
        schedule(start_lr=start, end_lr=1.0, num_steps=10)


@both_schedules
@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_end_must_be_finite(schedule: Schedule, end: float) -> None:
    """Catalogue row 32: an infinite end makes every LR infinite."""
    with pytest.raises(ValueError, match=r"end_lr must be finite, got .*; try 10"):
        schedule(start_lr=1e-3, end_lr=end, num_steps=10)


@both_schedules
@pytest.mark.parametrize("end", [0.1, 0.05, 0.0, -1.0])
def test_end_must_exceed_start(schedule: Schedule, end: float) -> None:
    """Catalogue row 32: end < start swept silently downwards in torch-lr-finder; the message names both bounds."""
    with pytest.raises(ValueError, match=rf"end_lr must exceed start_lr=0\.1, got {end}; raise end_lr"):
        schedule(start_lr=0.1, end_lr=end, num_steps=10)


@both_schedules
@pytest.mark.parametrize("num_steps", [1, 0, -5])
def test_fewer_than_two_steps_are_refused(schedule: Schedule, num_steps: int) -> None:
    """Catalogue row 32: one step has no ratio; the formula would divide by zero."""
    with pytest.raises(ValueError, match=rf"num_steps must be at least 2, got {num_steps}; try 100"):
        schedule(start_lr=0.1, end_lr=1.0, num_steps=num_steps)


def test_modes_of_the_configuration_name_the_two_schedules() -> None:
    """sweep.mode is looked up here: a renamed key would break every user's file."""
    assert set(SWEEP_SCHEDULES) == {"exponential", "linear"}
    assert SWEEP_SCHEDULES["exponential"](start_lr=1.0, end_lr=4.0, num_steps=3).tolist() == [1.0, 2.0, 4.0]
    assert SWEEP_SCHEDULES["linear"](start_lr=1.0, end_lr=4.0, num_steps=3).tolist() == [1.0, 2.5, 4.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_training_schedules_warm_up_to_the_peak_and_decay_towards_zero(schedule: str, expected: list[float]) -> None:
    """The names of train.schedule; every step has an LR above 0, since one at 0 would train nothing."""
    assert training_lrs(1.0, schedule=schedule, num_steps=6, warmup_steps=2).tolist() == pytest.approx(expected)
    assert training_lrs(3.0, schedule=schedule, num_steps=1).tolist() == [3.0]


def test_training_schedules_are_those_of_the_configuration() -> None:
    """train.schedule is looked up here."""
    assert list(DECAYS) == [name.value for name in ScheduleName]


@pytest.mark.parametrize("warmup_steps", [-1, 6, 7])
def test_a_warm_up_must_leave_a_step_of_the_schedule(warmup_steps: int) -> None:
    """Such a training never reaches the schedule that it is named after."""
    with pytest.raises(ValueError, match=rf"warmup_steps must lie in \[0, 6\), got {warmup_steps}"):
        training_lrs(1.0, schedule="constant", num_steps=6, warmup_steps=warmup_steps)


@pytest.mark.parametrize(
    ("num_steps", "training_steps", "warmup_steps", "expected"),
    [
        (100, 1000, 0, 0),  # none stays none
        (1000, 1000, 137, 137),  # the training itself
        (100, 1000, 300, 30),  # the same share
        (50, 100_000, 2000, 5),  # a share of one step would be no warm-up: at least a tenth
        (50, 100_000, 3, 3),  # but never more steps than the training
        (50, None, 400, 5),  # a share of an unknown length is not known
        (1, 1000, 999, 0),  # a trial needs a step at its LR
        (2, 1000, 999, 1),
    ],
)
def test_the_warm_up_of_a_trial(num_steps: int, training_steps: int | None, warmup_steps: int, expected: int) -> None:
    """What a warm-up prevents takes a number of steps; what it costs is a share of the trial."""
    found = trial_warmup_steps(num_steps, training_steps=training_steps, warmup_steps=warmup_steps)
    assert found == expected


@PROPERTY
@given(trial=st.integers(1, 500), training=st.none() | st.integers(1, 10**9), share=st.floats(0, 1))
def test_a_trial_can_complete_every_schedule(trial: int, training: int | None, share: float) -> None:
    """Whatever the training is, its trial has a step after the warm-up, and all LRs lie above 0 up to the peak."""
    warmup_steps = min(int(share * (training or 1000)), (training or 1000) - 1)
    own = trial_warmup_steps(trial, training_steps=training, warmup_steps=warmup_steps)
    lrs = training_lrs(1.0, schedule="cosine", num_steps=trial, warmup_steps=own)
    assert lrs.shape == (trial,)
    assert 0 < lrs.min() <= lrs.max() == 1.0
