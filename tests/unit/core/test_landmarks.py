from __future__ import annotations

import numpy as np
import pytest

from lrrunner.core.curve import Curve, curve_from_steps
from lrrunner.core.landmarks import landmarks
from tests.unit.core.curves import (
    STEP_DECADES,
    FloatArray,
    cosine_valley,
    fall_and_blow_up,
    noise,
    records,
    sweep_lrs,
    with_tail,
)

LRS = sweep_lrs()
SEEDS = range(20)


def curve_of(lrs: FloatArray, losses: FloatArray, *, grad_norms: FloatArray | None = None) -> Curve:
    """The curve that landmarks are read from."""
    curve = curve_from_steps(records(lrs, losses, grad_norms=grad_norms), beta=0.9)
    assert curve is not None
    return curve


def test_landmarks_of_a_known_curve() -> None:
    """Half of the sigmoid at 1e-3, nine tenths at -3 + 0.4 ln 9 = -2.12, lowest at 10**-1.02, and up at -0.33."""
    lrs = sweep_lrs(401)
    found = landmarks(curve_of(lrs, fall_and_blow_up(lrs), grad_norms=np.where(lrs < 1e-2, 1.0, 1.6)))
    logs = {name: landmark.log_lr for name, landmark in found.items()}
    assert logs == {
        "half_fall": pytest.approx(-3.0, abs=0.03),
        "most_of_fall": pytest.approx(-2.12, abs=0.05),
        "minimum": pytest.approx(-1.02, abs=0.03),
        "blow_up": pytest.approx(-0.33, abs=0.02),
        "gradient_rise": pytest.approx(-2.0, abs=0.021),
    }


def test_steps_per_decade_are_those_of_the_sweep_at_the_landmark() -> None:
    """400 steps over 8 decades; a linear sweep takes ten times as many in the decade above."""
    found = landmarks(curve_of(sweep_lrs(401), fall_and_blow_up(sweep_lrs(401))))
    assert found["half_fall"].steps_per_decade == pytest.approx(50.0)
    lrs = np.linspace(1e-3, 10.0, 1000)
    found = landmarks(curve_of(lrs, fall_and_blow_up(lrs, at=-1.0, diverges_at=0.5)))
    ratio = found["minimum"].steps_per_decade / found["half_fall"].steps_per_decade
    assert ratio == pytest.approx(10 ** (found["minimum"].log_lr - found["half_fall"].log_lr), rel=0.1)


def test_a_blow_up_is_seen_without_any_noise() -> None:
    """A level of exactly 2.3 and a divergence capped at exactly 2.3 must not look alike."""
    losses = np.where(LRS < 1e-3, 2.3, np.where(LRS < 1e-1, 0.5, 9.0))
    assert landmarks(curve_of(LRS, losses))["blow_up"].log_lr == pytest.approx(-1.0, abs=STEP_DECADES)


def test_a_divergence_beyond_the_range_is_no_landmark() -> None:
    """Nothing is guessed: the estimate does with what is seen, and is less sure."""
    lrs = sweep_lrs(81)[:61]
    assert sorted(landmarks(curve_of(lrs, cosine_valley(lrs)))) == ["half_fall", "minimum", "most_of_fall"]


def test_a_fall_that_noise_hides_is_no_landmark() -> None:
    """What is lowest in noise alone lies anywhere."""
    seen = [set(landmarks(curve_of(LRS, 2.3 + noise(seed, std=0.5)))) for seed in SEEDS]
    assert all("minimum" not in names for names in seen)


def test_noise_makes_the_landmarks_of_a_fall_less_sure() -> None:
    """Their weight in the estimate follows from it."""
    errors = [
        [landmarks(curve_of(LRS, fall_and_blow_up(LRS) + noise(s, std=std)))["most_of_fall"].error for s in SEEDS]
        for std in (0.01, 0.1, 0.4)
    ]
    quiet, middle, loud = (float(np.median(each)) for each in errors)
    assert quiet < middle / 1.5
    assert middle < loud / 1.5


def test_two_high_losses_before_the_fall_are_no_blow_up() -> None:
    """Found on a GRU: two of three losses 3.6 standard deviations up, 76 steps before the divergence; LR 7e-8."""
    losses = fall_and_blow_up(LRS) + noise(3, std=0.1)
    losses[22:24] = 2.3 + 4.5 * 0.1
    assert landmarks(curve_of(LRS, losses))["blow_up"].log_lr > -0.7


def test_an_explosion_before_the_fall_is_a_blow_up() -> None:
    """Whatever comes later: far above the noise it is no accident."""
    losses = fall_and_blow_up(LRS) + noise(3, std=0.02)
    losses[22:26] = 6.0
    assert landmarks(curve_of(LRS, losses))["blow_up"].log_lr == pytest.approx(np.log10(LRS[22]), abs=2 * STEP_DECADES)


def test_a_spike_in_the_descent_is_a_blow_up() -> None:
    """Also when the loss comes back lower than before."""
    losses = with_tail(fall_and_blow_up(LRS), first=62, value=6.0)
    losses[65:] = fall_and_blow_up(LRS)[65:]
    assert landmarks(curve_of(LRS, losses))["blow_up"].log_lr == pytest.approx(np.log10(LRS[62]), abs=2 * STEP_DECADES)


def test_gradient_norms_below_their_noise_do_not_count_as_a_rise() -> None:
    """Two standard deviations of the norms' own noise, where that is more than half of their level: seldom passed."""
    losses = fall_and_blow_up(LRS)
    seen = sum("gradient_rise" in landmarks(curve_of(LRS, losses, grad_norms=np.exp(noise(s, std=0.5)))) for s in SEEDS)
    assert seen <= 3
