"""The best LR after a sweep and trials, against losses whose lowest point is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.lr_estimate import LENGTH_EXPONENT
from lrrunner.core.regret import regret
from lrrunner.core.trial_estimate import TrialEstimate, TrialLosses, interval_error, trial_estimate
from tests.unit.core.curves import PROPERTY

PLACES = (-3.5, -3.0, -2.5)


def losses_of(best: float, *, places: tuple[float, ...] = PLACES, curvature: float = 0.5) -> list[float]:
    """What a bowl with a fall of 2 down to 1 gives at these log LRs."""
    return [1.0 + 2.0 * float(regret(x - best, curvature)) for x in places]


def estimated(
    losses: list[float],
    *,
    places: tuple[float, ...] = PLACES,
    errors: list[float] | None = None,
    initial: float = 3.0,
    num_steps: int = 400,
    training_steps: int | None = 400,
    sweep_log_lr: float = -3.0,
    sweep_error: float = 0.3,
) -> TrialEstimate:
    """The estimate from trials of one length."""
    trials = TrialLosses(places, [num_steps] * len(places), losses, errors or [0.0] * len(places), initial)
    return trial_estimate(trials, sweep_log_lr=sweep_log_lr, sweep_error=sweep_error, training_steps=training_steps)


@PROPERTY
@given(best=st.floats(-3.25, -2.75), curvature=st.floats(0.8, 4.0))
def test_trials_of_the_training_itself_find_its_best_lr(best: float, curvature: float) -> None:
    """To a tenth of a decade with a sweep that says little, where the bowl stands clear of the noise of seeds."""
    found = estimated(losses_of(best, curvature=curvature), sweep_error=1.0)
    assert found.log_lr == pytest.approx(best, abs=0.12)
    assert found.low < best < found.high


@PROPERTY
@given(best=st.floats(-3.4, -2.6))
def test_trials_narrow_what_the_sweep_says(best: float) -> None:
    """An interval of the sweep alone is wider than after three trials around the best LR, which then costs less."""
    found = estimated(losses_of(best))
    assert found.high - found.low < 2 * 1.645 * 0.3
    assert 0 < found.expected_regret < 0.05


def test_equal_losses_leave_the_sweep_s_word() -> None:
    """A loss that no LR moves says nothing about the LR."""
    found = estimated([1.0, 1.0, 1.0])
    assert found.log_lr == pytest.approx(-3.0, abs=0.12)


def test_short_trials_prefer_higher_lrs_and_are_less_sure() -> None:
    """Trials of 40 steps say a tenth power of ten of the exponent less for 400, between them and the sweep."""
    same = estimated(losses_of(-2.8), sweep_error=1.0)
    shorter = estimated(losses_of(-2.8), sweep_error=1.0, num_steps=40)
    assert shorter.log_lr - same.log_lr == pytest.approx(LENGTH_EXPONENT, abs=0.1)
    assert shorter.high - shorter.low > same.high - same.low
    assert shorter.expected_regret > same.expected_regret


def test_trials_of_two_lengths_measure_how_the_best_lr_moves() -> None:
    """A best LR that falls by 0.3 decades from 40 to 120 steps is lower still for 400."""
    lengths, bests = [40] * 3 + [120] * 3, (-2.6, -2.9)
    losses = [loss for best in bests for loss in losses_of(best)]
    trials = TrialLosses(PLACES * 2, lengths, losses, [0.0] * 6, 3.0)
    both = trial_estimate(trials, sweep_log_lr=-3.0, sweep_error=1.0, training_steps=400)
    long_only = estimated(losses_of(-2.9), sweep_error=1.0, num_steps=120)
    assert both.log_lr < long_only.log_lr - 0.05


def test_noisy_differences_count_for_less() -> None:
    """Evaluations that cannot tell the trials apart leave the sweep's LR."""
    clear, noisy = (estimated(losses_of(-2.5), errors=[error] * 3) for error in (0.0, 2.0))
    assert abs(noisy.log_lr + 3.0) < 0.5 * abs(clear.log_lr + 3.0)
    assert noisy.high - noisy.low > clear.high - clear.low


@pytest.mark.parametrize("height", [math.inf, 1e6, 1e300])
def test_how_far_a_run_blew_up_does_not_matter(height: float) -> None:
    """But no LR from a divergence on is possible."""
    found = estimated([1.2, 1.0, height])
    assert found.log_lr == pytest.approx(estimated([1.2, 1.0, 1e3]).log_lr, abs=0.05)
    if math.isinf(height):
        assert found.log_lr < found.high < -2.5 + 0.11


@PROPERTY
@given(
    losses=st.lists(st.floats(0.0, 4.0), min_size=3, max_size=3),
    log_factor=st.floats(-6, 6),
    shift=st.integers(-100, 100),
)
def test_unit_and_zero_of_the_loss_do_not_matter(losses: list[float], log_factor: float, shift: int) -> None:
    """Bits or nats, sum or mean, an ELBO or its positive part: the LR is the same."""
    plain = estimated(losses, initial=5.0)
    scaled = estimated([loss * 10**log_factor for loss in losses], initial=5.0 * 10**log_factor)
    shifted = estimated([loss + shift for loss in losses], initial=5.0 + shift)
    assert scaled == pytest.approx(plain, abs=1e-6)
    assert shifted == pytest.approx(plain, abs=1e-6)


@PROPERTY
@given(losses=st.lists(st.floats(0.0, 4.0), min_size=3, max_size=3), decades=st.floats(-4, 4))
def test_unit_of_the_lr_does_not_matter(losses: list[float], decades: float) -> None:
    """An optimizer that counts in other units gets the same answer in its units."""
    plain = estimated(losses, initial=5.0)
    moved = estimated(
        losses,
        initial=5.0,
        places=tuple(x + decades for x in PLACES),
        sweep_log_lr=-3.0 + decades,
    )
    assert moved.log_lr - decades == pytest.approx(plain.log_lr, abs=1e-6)
    assert moved.expected_regret == pytest.approx(plain.expected_regret, abs=1e-6)


def test_the_interval_of_a_sweep_gives_its_error_back() -> None:
    """90 % of a normal distribution lie within 1.645 errors."""
    assert interval_error(*(10 ** (-3 + side * 1.645 * 0.3) for side in (-1, 1))) == pytest.approx(0.3)
    assert np.isfinite(interval_error(1e-30, 1e30))
