from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.smoothing import Ema
from lrrunner.core.stop_rules import RangeStop, RatioStop, StopRule, stop_rule, trial_stop_rule
from tests.unit.core.curves import PROPERTY, FloatArray, fall_and_blow_up, noise, sweep_lrs, with_tail


def first_stop(rule: StopRule, losses: FloatArray | Sequence[float], *, beta: float = 0.9) -> int | None:
    """The step at which a rule fires, fed as the engine feeds it."""
    average = Ema(beta)
    for step, loss in enumerate(losses):
        if rule.update(float(loss), average.update(float(loss))):
            return step
    return None


def range_rule(num_steps: int = 100, *, factor: float = 2.0) -> StopRule:
    """The default rule."""
    return stop_rule("range", factor=factor, num_steps=num_steps)


def good_then_exploding(*, first: int = 80, growth: float = 3.0) -> FloatArray:
    """A fall from 2.3 to 0.5, and from step ``first`` on a loss that grows by ``growth`` a step."""
    losses = fall_and_blow_up(sweep_lrs(), diverges_at=9.0)
    return with_tail(losses, first=first, value=np.asarray(0.5 * growth ** np.arange(1, 101 - first)))


def test_range_rule_fires_above_factor_times_the_fall() -> None:
    """Reference 10, lowest 6, fall 4, factor 2: 14 is the last value that is still allowed."""
    rule = RangeStop(factor=2.0, reference_steps=3)
    assert [rule.update(x, x) for x in (10.0, 10.0, 10.0, 6.0, 14.0)] == [False] * 5
    assert rule.update(14.001, 14.001)


def test_range_rule_takes_four_standard_deviations_where_nothing_fell() -> None:
    """Raw 1, 3, 1: sqrt((4 + 4) / 2 / 2) = 1.414, times 1 + 3 / sqrt(2) = 4.414 noise; 1 + 4 * 4.414 = 18.657 stops."""
    rule = RangeStop(factor=1.0, reference_steps=3)
    assert [rule.update(raw, 1.0) for raw in (1.0, 3.0, 1.0)] == [False] * 3
    assert not rule.update(9.0, 18.65)
    assert rule.update(9.0, 18.66)


def test_range_rule_does_not_stop_before_its_reference_is_known() -> None:
    """Law 5: after a minimum of steps; an explosion before it shows up right after it or in the verdict."""
    rule = RangeStop(factor=2.0, reference_steps=5)
    assert [rule.update(x, x) for x in (1.0, 1.0, 1.0, 1.0, 1e9)] == [False] * 5


def test_range_rule_takes_the_median_of_the_first_smoothed_losses() -> None:
    """One early spike must not become the reference level: the fall is 3 - 1 = 2 here, not 100 - 1."""
    rule = RangeStop(factor=1.0, reference_steps=3)
    for raw, smoothed in ((3.0, 3.0), (3.0, 100.0), (3.0, 2.0), (1.0, 1.0)):
        assert not rule.update(raw, smoothed)
    assert not rule.update(1.0, 2.99)
    assert rule.update(1.0, 3.01)


@pytest.mark.parametrize("std", [0.0, 1e-9, 1e-3, 0.1, 1.0, 100.0, 1e6])
def test_range_rule_never_stops_on_flat_noise_of_any_size(std: float) -> None:
    """A flat start is most of a sweep: a false stop there costs the whole curve."""
    stops = {seed: first_stop(range_rule(), 2.3 + noise(seed, std=std)) for seed in range(50)}
    assert {seed: step for seed, step in stops.items() if step is not None} == {}


@pytest.mark.parametrize("num_steps", [20, 30, 50, 300])
def test_range_rule_never_stops_on_flat_noise_for_any_sweep_length(num_steps: int) -> None:
    """A short sweep must not estimate its noise from so few differences that it stops by chance."""
    stops = {seed: first_stop(range_rule(num_steps), 2.3 + noise(seed, num_steps, std=0.1)) for seed in range(50)}
    assert {seed: step for seed, step in stops.items() if step is not None} == {}


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98])
def test_range_rule_never_stops_on_flat_noise_for_any_smoothing(beta: float) -> None:
    """sweep.smoothing=0 is allowed: eight standard deviations are then still eight, if the noise is known well."""
    stops = {seed: first_stop(range_rule(), 2.3 + noise(seed, std=0.1), beta=beta) for seed in range(50)}
    assert {seed: step for seed, step in stops.items() if step is not None} == {}


def test_range_rule_never_stops_on_a_constant() -> None:
    """Catalogue row 18: with a deflated first average, a constant loss is taken for a rise."""
    for constant in (2.3, 0.0, -5.0, 1e-12, 1e300):
        assert first_stop(range_rule(), np.full(100, constant)) is None


def test_range_rule_tolerates_a_steady_step_up_smaller_than_the_fall() -> None:
    """Catalogue row 18: 1.0 rising to 2.6 stopped Lightning's "four times" rule at once."""
    losses = with_tail(np.full(100, 5.0), first=20, value=1.0)
    assert first_stop(range_rule(), with_tail(losses, first=60, value=2.6)) is None


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("std", [0.0, 0.02, 0.2])
def test_range_rule_stops_within_five_steps_of_an_explosion(std: float, seed: int) -> None:
    """Each step past divergence is wasted, and soon NaN."""
    stop = first_stop(range_rule(), good_then_exploding(first=80) + noise(seed, std=std))
    assert stop is not None
    assert 80 <= stop <= 84


@pytest.mark.parametrize("shift", [-1.4, -10.0, -1000.0])
def test_range_rule_treats_negative_losses_as_any_other(shift: float) -> None:
    """Catalogue row 5: `loss > k * best` stopped at step 1 or 2; -1.4 makes this curve cross zero on its way down."""
    plain = first_stop(range_rule(), good_then_exploding() + noise(0, std=0.02))
    assert first_stop(range_rule(), good_then_exploding() + noise(0, std=0.02) + shift) == plain
    assert plain is not None


def test_range_rule_ignores_a_descent_through_zero() -> None:
    """Catalogue row 5: best near zero makes every ratio explode; nothing diverges here."""
    losses = np.linspace(1.0, -1.0, 100) + noise(1, std=0.01)
    assert first_stop(range_rule(), losses) is None


@pytest.mark.parametrize("unit", [1e-9, 1e-30, 1e30])
def test_range_rule_treats_tiny_and_huge_units_as_any_other(unit: float) -> None:
    """Catalogue row 5: near-zero losses need no epsilon, as only differences are compared."""
    losses = good_then_exploding() + noise(3, std=0.02)
    assert first_stop(range_rule(), losses * unit) == first_stop(range_rule(), losses)


@pytest.mark.parametrize("name", ["range", "ratio"])
def test_rules_do_not_raise_on_huge_losses(name: str) -> None:
    """A loss of 1e300 is an explosion to report, not an OverflowError on one rank."""
    flat_then_huge = with_tail(np.full(100, 2.3), first=50, value=1e300)
    stop = first_stop(stop_rule(name, factor=4.0, num_steps=100), flat_then_huge)
    assert stop == 50
    swinging = np.asarray(1e300 * (-1.0) ** np.arange(100))
    first_stop(stop_rule(name, factor=4.0, num_steps=100), swinging)


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    std=st.sampled_from([0.01, 0.1, 0.5]),
    first=st.integers(30, 95),
    growth=st.floats(1.2, 10.0),
    shift=st.floats(-100.0, 100.0),
    log_scale=st.floats(-6.0, 6.0),
)
def test_range_rule_is_invariant_to_shift_and_scale(
    seed: int, std: float, first: int, growth: float, shift: float, log_scale: float
) -> None:
    """Law 5: the zero and the unit of a loss are the user's choice and must not move the stop by a step."""
    losses = good_then_exploding(first=first, growth=growth) + noise(seed, std=std)
    plain = first_stop(range_rule(), losses)
    assert first_stop(range_rule(), losses + shift) == plain
    assert first_stop(range_rule(), losses * 10**log_scale) == plain


def test_ratio_rule_fires_above_factor_times_the_best_raw_loss() -> None:
    """The article's rule on literal numbers: best raw 0.5, factor 4, so 2.0 is the last smoothed loss allowed."""
    rule = RatioStop(factor=4.0)
    assert [rule.update(raw, s) for raw, s in ((1.0, 1.0), (0.5, 0.9), (3.0, 1.5), (4.0, 2.0))] == [False] * 4
    assert rule.update(4.0, 2.001)


def test_ratio_rule_compares_with_the_raw_best_not_the_smoothed_one() -> None:
    """The article mixes the two on purpose; with the smoothed best, 1.0, this would not fire below 4."""
    rule = RatioStop(factor=4.0)
    assert not rule.update(0.1, 1.0 / 4)
    assert rule.update(1.0, 0.41)


def test_ratio_rule_on_a_sweep_of_literal_losses() -> None:
    """Without smoothing: best 1, and 4.5 is the first loss above 4."""
    assert first_stop(RatioStop(factor=4.0), [2.0, 1.0, 3.9, 4.0, 4.5, 9.0], beta=0.0) == 4


@PROPERTY
@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), low=st.floats(-1e6, 0.0))
def test_ratio_rule_never_fires_once_the_best_loss_is_zero_or_below(losses: list[float], low: float) -> None:
    """Catalogue row 5: four times a negative best lies below it, which stopped all four peers at step 1 or 2."""
    assert first_stop(RatioStop(factor=4.0), [low, *losses]) is None


@PROPERTY
@given(losses=st.lists(st.floats(0.001, 1e3), min_size=1, max_size=60), exponent=st.integers(-20, 20))
def test_ratio_rule_is_invariant_to_scale(losses: list[float], exponent: int) -> None:
    """A ratio has no unit (powers of two, so that not even rounding differs)."""
    scaled = [loss * 2.0**exponent for loss in losses]
    assert first_stop(RatioStop(factor=4.0), scaled) == first_stop(RatioStop(factor=4.0), losses)


def test_each_call_gives_a_fresh_rule() -> None:
    """Catalogue row 17's cousin: a repeat that inherits the last one's best loss stops at its first step."""
    used = range_rule()
    first_stop(used, good_then_exploding())
    assert first_stop(range_rule(), np.full(100, 2.3)) is None


def test_unknown_rule_lists_the_known_ones() -> None:
    """A wrong choice should cost one look at the message."""
    with pytest.raises(ValueError, match="stop_rule must be one of range, ratio; got relative"):
        stop_rule("relative", factor=2.0, num_steps=100)


def training(*, spike: float = 0.0, first: int = 20, length: int = 10) -> FloatArray:
    """A hundred steps from 2.3 to 0.5 with a spike, a little noise."""
    losses = 0.5 + 1.8 * np.exp(-np.arange(100) / 20) + noise(3, std=0.02)
    losses[first : first + length] += spike
    return np.asarray(losses)


def test_a_trial_survives_a_spike_from_which_it_recovers() -> None:
    """What a large learning rate throws up in the beginning may end below everything else."""
    losses = training(spike=1e3)
    assert first_stop(range_rule(), losses) is not None
    assert first_stop(trial_stop_rule(num_steps=100), training(spike=20.0, length=5)) is None
    assert first_stop(trial_stop_rule(num_steps=100), training()) is None


def test_a_trial_that_stays_far_above_its_best_is_cut() -> None:
    """A quarter of the schedule without hope is enough."""
    assert first_stop(trial_stop_rule(num_steps=100), training(spike=1e3, first=30, length=70)) == 54


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9])
def test_a_very_short_trial_is_never_cut(num_steps: int) -> None:
    """Nothing is known of its noise."""
    assert first_stop(trial_stop_rule(num_steps=num_steps), [1.0, 1e6, 1e9, 1e12, 1e15, 1e18][:num_steps]) is None


def test_another_loss_may_show_the_noise() -> None:
    """A validation loss on always the same samples has none: without the training loss's, any rise would stop."""
    for noisy, expected in ((lambda i: 10.0 + (-1.0) ** i, False), (lambda i: 10.0, True)):
        rule = stop_rule("range", factor=2.0, num_steps=100)
        stopped = [
            rule.update(1.0 + 0.01 * max(0, i - 20), 1.0 + 0.01 * max(0, i - 20), noisy_loss=noisy(i))
            for i in range(60)
        ]
        assert any(stopped) == expected


def test_the_ratio_rule_compares_one_loss_with_itself() -> None:
    """A validation loss of twice the training loss is no divergence."""
    rule = stop_rule("ratio", factor=4.0, num_steps=100)
    assert not rule.update(10.0, 10.0, noisy_loss=1.0)
    assert rule.update(10.0, 41.0, noisy_loss=1.0)
