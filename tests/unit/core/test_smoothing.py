from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.smoothing import Ema, ema, local_linear
from tests.unit.core.curves import PROPERTY, sigmoid_fall, sweep_lrs

betas = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)
losses = st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=60)


def test_bias_corrected_average_of_1_2_3_with_memory_one_half() -> None:
    """m = 0.5, 1.25, 2.125 over 1 - 0.5**t = 0.5, 0.75, 0.875, worked out by hand."""
    assert ema(np.array([1.0, 2.0, 3.0]), beta=0.5) == pytest.approx([1.0, 5 / 3, 17 / 7], rel=1e-15)


@PROPERTY
@given(beta=betas, value=st.floats(min_value=-1e300, max_value=1e300), length=st.integers(1, 60))
def test_constant_in_is_constant_out_bit_for_bit(beta: float, value: float, length: int) -> None:
    """Catalogue row 18: Lightning's correction is off by one, records 0.505 for 1.0 and stops a flat curve."""
    assert ema(np.full(length, value), beta=beta).tolist() == [value] * length


@PROPERTY
@given(beta=betas, loss=st.floats(min_value=-1e300, max_value=1e300))
def test_first_average_is_the_first_loss(beta: float, loss: float) -> None:
    """Catalogue row 18: the correction at t = 1 is 1 - beta, not 1 - beta**2."""
    assert Ema(beta).update(loss) == loss


@PROPERTY
@given(values=losses)
def test_zero_memory_returns_the_input(values: list[float]) -> None:
    """sweep.smoothing=0 means raw losses."""
    assert ema(np.array(values), beta=0.0) == pytest.approx(values, rel=1e-12, abs=1e-9)


@PROPERTY
@given(beta=betas, values=losses)
def test_average_stays_between_the_extremes(beta: float, values: list[float]) -> None:
    """An average outside its own inputs would trip or hide a stop."""
    smoothed = ema(np.array(values), beta=beta)
    assert smoothed.min() >= min(values) - 1e-9
    assert smoothed.max() <= max(values) + 1e-9


@PROPERTY
@given(beta=st.floats(0.0, 0.99), values=losses, shift=st.floats(-1e3, 1e3), scale=st.floats(0.01, 100.0))
def test_average_follows_shift_and_scale(beta: float, values: list[float], shift: float, scale: float) -> None:
    """The unit of a loss is arbitrary, and so is its zero."""
    moved = ema(np.array(values) * scale + shift, beta=beta)
    assert moved == pytest.approx(ema(np.array(values), beta=beta) * scale + shift, rel=1e-9, abs=1e-6)


@PROPERTY
@given(beta=st.floats(0.0, 0.999), values=losses)
def test_average_is_the_weighted_mean_of_the_definition(beta: float, values: list[float]) -> None:
    """s_t = sum(beta**(t-k) * loss_k) / sum(beta**(t-k)): Kingma and Ba's formula, written out without recursion."""
    weights = beta ** np.arange(len(values))[::-1]
    expected = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
    assert ema(np.array(values), beta=beta)[-1] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_average_is_causal() -> None:
    """Law 6: it serves the stop, so a later loss must not change an earlier value."""
    calm, explodes = np.ones(10), np.ones(10)
    explodes[7:] = 1e9
    assert ema(explodes, beta=0.9)[:7].tolist() == ema(calm, beta=0.9)[:7].tolist()


@pytest.mark.parametrize("beta", [1.0, 1.5, -0.1, math.nan, math.inf])
def test_memory_outside_0_to_1_is_refused(beta: float) -> None:
    """Catalogue row 19: smoothing=1 is 0/0 = NaN for the whole curve in the TF2 article's code, and its default."""
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\), got .*; try 0\.9"):
        Ema(beta)


def test_losses_must_be_one_dimensional() -> None:
    """A (T, 1) array would broadcast into nonsense silently."""
    with pytest.raises(ValueError, match=r"losses must be 1-D, got shape \(3, 1\)"):
        ema(np.ones((3, 1)), beta=0.9)


def test_average_of_nothing_is_empty() -> None:
    """Catalogue row 27: a sweep that failed before its first step has no losses."""
    assert ema(np.array([]), beta=0.9).tolist() == []


def test_straight_line_passes_through_the_zero_phase_smoother() -> None:
    """No lag and no flattened ends: value and slope of a line come back everywhere, first and last point included."""
    x = np.linspace(-7.0, 1.0, 100)
    smoother = local_linear(x, bandwidth=0.2)
    assert smoother.value @ (3.0 - 2.0 * x) == pytest.approx(3.0 - 2.0 * x, abs=1e-10)
    assert smoother.slope @ (3.0 - 2.0 * x) == pytest.approx(np.full(100, -2.0), abs=1e-9)


@PROPERTY
@given(
    x=st.lists(st.floats(-8.0, 2.0), min_size=2, max_size=40, unique_by=lambda v: round(v, 2)).map(sorted),
    value=st.floats(-1e6, 1e6),
)
def test_constant_passes_through_the_zero_phase_smoother(x: list[float], value: float) -> None:
    """Constant in, constant out, slope zero, on any sweep, however uneven."""
    smoother = local_linear(np.array(x), bandwidth=0.2)
    constant = np.full(len(x), value)
    assert smoother.value @ constant == pytest.approx(constant, rel=1e-8)
    assert smoother.slope @ constant == pytest.approx(np.zeros(len(x)), abs=1e-4 * (1 + abs(value)))


def test_minimum_of_a_symmetric_valley_does_not_move() -> None:
    """Law 6: a causal EMA moves a minimum to the right by its lag; this smoother must not."""
    x = np.linspace(-4.0, 4.0, 81)
    smoothed = local_linear(x, bandwidth=0.3).value @ (x - 1.0) ** 2
    assert x[int(np.argmin(smoothed))] == pytest.approx(1.0, abs=1e-9)


def test_steepest_point_of_a_sigmoid_does_not_move() -> None:
    """Law 6: EMA lag alone moves the steepest point about four times to the right (peers, section 3)."""
    lrs = sweep_lrs(81)
    slope = local_linear(np.log10(lrs), bandwidth=0.2).slope @ sigmoid_fall(lrs, at=-3.0)
    assert lrs[int(np.argmin(slope))] == pytest.approx(1e-3, rel=1e-9)


def test_mirrored_losses_give_mirrored_smoothing() -> None:
    """Zero phase means that neither direction of the sweep is special."""
    x = np.linspace(0.0, 5.0, 51)
    values = np.random.default_rng(0).normal(size=51)
    smoother = local_linear(x, bandwidth=0.4)
    assert smoother.value @ values[::-1] == pytest.approx((smoother.value @ values)[::-1], abs=1e-10)
    assert smoother.slope @ values[::-1] == pytest.approx(-(smoother.slope @ values)[::-1], abs=1e-9)


def test_kernel_widens_where_points_are_sparse() -> None:
    """A linear sweep leaves its first decades nearly empty: a fixed kernel would divide by zero there."""
    x = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    smoother = local_linear(x, bandwidth=0.2)
    assert np.isfinite(smoother.value).all()
    assert smoother.value @ (2.0 * x) == pytest.approx(2.0 * x, abs=1e-9)
    assert smoother.slope @ (2.0 * x) == pytest.approx(np.full(5, 2.0), abs=1e-9)


def test_two_points_are_joined_by_their_line() -> None:
    """The fewest points that have a slope."""
    smoother = local_linear(np.array([0.0, 2.0]), bandwidth=0.2)
    assert smoother.value @ np.array([5.0, 1.0]) == pytest.approx([5.0, 1.0])
    assert smoother.slope @ np.array([5.0, 1.0]) == pytest.approx([-2.0, -2.0])
