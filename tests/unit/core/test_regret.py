"""The bowl of a training's loss over log LR, and what an uncertain LR is expected to lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.regret import CURVATURE_WEIGHTS, CURVATURES, expected_regret, regret
from tests.unit.core.curves import PROPERTY


@PROPERTY
@given(decades=st.floats(-20, 20), curvature=st.floats(1e-3, 1e3))
def test_regret_is_a_share_and_nothing_is_lost_at_the_best_lr(decades: float, curvature: float) -> None:
    """Never the whole, however far away; more the further away."""
    assert regret(0.0, curvature) == 0
    assert 0 <= regret(decades, curvature) < 1 + 1e-12
    assert regret(decades, curvature) <= regret(1.5 * decades, curvature)


def test_too_high_costs_more_than_too_low() -> None:
    """By the same factor: what diverges has lost everything, what is slow has learnt something."""
    assert np.all(regret(0.5, CURVATURES) > regret(-0.5, CURVATURES))


def test_mean_over_jobs_is_that_of_the_development_jobs() -> None:
    """Mean regret of 33 jobs so far from their best LR (regret.md), to what their number allows."""
    distances = [-1.0, -0.5, -0.25, 0.25, 0.5, 1.0]
    measured = [0.298, 0.114, 0.044, 0.060, 0.179, 0.491]
    means = regret(np.array(distances)[:, None], CURVATURES) @ CURVATURE_WEIGHTS
    assert means == pytest.approx(measured, abs=0.15)
    assert means[1:5] == pytest.approx(measured[1:5], abs=0.02)


@PROPERTY
@given(error=st.floats(0.0, 3.0), more=st.floats(1.01, 3.0))
def test_what_is_less_sure_is_expected_to_lose_more(error: float, more: float) -> None:
    """Nothing where the best LR is known."""
    assert expected_regret(0.0) == 0
    assert expected_regret(error) <= expected_regret(error * more) < 1
