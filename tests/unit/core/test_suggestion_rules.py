from __future__ import annotations

import dataclasses
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.curve import Curve, curve_from_steps
from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.suggestion_rules import RULES, longest_decreasing_subsequence, suggest
from lrrunner.records import Stop, StopReason, Suggestion, Verdict
from tests.unit.core.curves import (
    PROPERTY,
    STEP_DECADES,
    FloatArray,
    cosine_valley,
    diverged,
    ended,
    fall_and_blow_up,
    noise,
    non_finite,
    records,
    sigmoid_fall,
    sweep_lrs,
    with_tail,
)

ALL_RULES = ["auto", "steepest", "minimum", "valley", "slide", "largest_drop"]
SEEDS = range(20)
LRS = sweep_lrs()

every_rule = pytest.mark.parametrize("name", ALL_RULES)
zero_phase_rule = pytest.mark.parametrize("name", ["auto", "steepest", "minimum", "valley", "slide"])
a_good_curve = given(
    num_steps=st.sampled_from([40, 81, 100, 161]),
    seed=st.integers(0, 10_000),
    std=st.sampled_from([0.001, 0.02, 0.1]),
    at=st.floats(-4.5, -2.5),
    width=st.floats(0.2, 0.6),
    diverges_at=st.floats(-1.5, 0.5),
    log_factor=st.floats(-4.0, 4.0),
    shift=st.floats(-100.0, 100.0),
)


def good_curve(num_steps: int, seed: int, std: float, at: float, width: float, diverges_at: float) -> FloatArray:
    """A noisy fall and blow-up on a sweep of that many steps."""
    smooth = fall_and_blow_up(sweep_lrs(num_steps), at=at, width=width, diverges_at=diverges_at)
    return smooth + noise(seed, num_steps, std=std)


def curve_of(lrs: FloatArray, losses: FloatArray, *, beta: float = 0.9, grad_norms: FloatArray | None = None) -> Curve:
    """The curve that the rules read."""
    curve = curve_from_steps(records(lrs, losses, grad_norms=grad_norms), beta=beta)
    assert curve is not None
    return curve


def decades(lr: float | None) -> float:
    """Position on the LR axis; NaN, which compares with nothing, where there is none."""
    return math.nan if lr is None else math.log10(lr)


def assert_same_lr(found: float | None, expected: float | None, *, factor: float = 1.0) -> None:
    """Equal to 1e-9, None meaning None."""
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected * factor, rel=1e-9)


def suggestions(
    smooth: FloatArray, stops: list[Stop], *, std: float, length: int | None = None
) -> dict[int, Suggestion]:
    """What is suggested for a curve of the default sweep (or its first steps) under the noise of each seed."""
    seeds = SEEDS if std else range(1)
    return {seed: suggest(records(LRS, (smooth + noise(seed, len(smooth), std=std))[:length]), stops) for seed in seeds}


def assert_all_without_lr(found: dict[int, Suggestion], verdict: Verdict, advice: str = "") -> None:
    """The verdict, for every seed, with no LR and the advice in its reason; a failure lists the seeds it fails for."""
    assert {seed: str(s) for seed, s in found.items() if s.verdict != verdict or advice not in s.reason} == {}
    for suggestion in found.values():
        assert_no_lr(suggestion)


def assert_all_with_lr(found: dict[int, Suggestion], verdict: Verdict, low: float, high: float) -> None:
    """The verdict, for every seed, with an LR between 10**low and 10**high; a failure lists the seeds it fails for."""
    assert {seed: str(s) for seed, s in found.items() if s.verdict != verdict or not low < decades(s.lr) < high} == {}


def assert_no_lr(suggestion: Suggestion) -> None:
    """Typed absence: nothing a caller could apply by mistake, and a reason."""
    assert suggestion.lr is None
    assert suggestion.interval is None
    assert set(suggestion.candidates.values()) == {None}
    assert suggestion.reason


# Rules on a curve whose landmarks are known: steepest at 1e-3, lowest at 1e-1, both on steps of the 81-step sweep.


def test_steepest_finds_the_steepest_point_against_log_lr() -> None:
    """Catalogue row 30: against LR itself the left end always wins (Lightning since 2.5.3)."""
    assert RULES["steepest"](curve_of(sweep_lrs(81), cosine_valley(sweep_lrs(81)))) == pytest.approx(1e-3, rel=1e-9)


def test_minimum_is_a_tenth_of_the_lowest_point() -> None:
    """The rule's definition, one decade before the lowest loss."""
    assert RULES["minimum"](curve_of(sweep_lrs(81), cosine_valley(sweep_lrs(81)))) == pytest.approx(1e-2, rel=1e-9)


def test_auto_is_not_lured_past_a_spike_on_the_way_down() -> None:
    """A blow-up for three steps in mid-descent is a blow-up, also when the loss comes back lower than before."""
    losses = fall_and_blow_up(LRS)
    spiked = losses.copy()
    spiked[62:65] = 6.0
    found = suggest(records(LRS, spiked), diverged()).lr
    assert found is not None
    assert found < LRS[62] / 4


def test_a_rise_without_a_fall_supports_an_lr_where_the_optimizer_is_known() -> None:
    """Found on a CNN whose loss rose fifteenfold by the end of the range, too late for the stop rule: LR none."""
    losses = 2.3 + np.maximum(np.log10(LRS) + 1.0, 0.0) ** 2 + noise(0, std=0.02)
    assert suggest(records(LRS, losses), ended()).lr is None
    found = suggest(records(LRS, losses), ended(), optimizer=OptimizerClass.MOMENTUM)
    assert found.verdict == Verdict.NO_DESCENT
    assert found.lr is not None
    assert 1e-3 < found.lr < 0.1


@pytest.mark.parametrize("name", ALL_RULES)
def test_the_class_of_the_optimizer_concerns_auto_alone(name: str) -> None:
    """Other rules have their definition; `auto` counts it as one more observation."""
    steps = records(LRS, fall_and_blow_up(LRS) + noise(0, std=0.02))
    plain, sign = (suggest(steps, diverged(), method=name, optimizer=kind).lr for kind in (None, OptimizerClass.SIGN))
    assert plain is not None
    assert sign is not None
    assert (sign < 0.9 * plain) == (name == "auto")


def test_valley_is_the_middle_of_the_descent() -> None:
    """A twentieth of the fall is over at 10**-4.43 (arccos(0.9) = 0.451), the end is 1e-1: the middle is 10**-2.71."""
    found = RULES["valley"](curve_of(sweep_lrs(81), cosine_valley(sweep_lrs(81))))
    assert decades(found) == pytest.approx(-2.71, abs=0.15)


def test_slide_is_the_left_end_of_the_last_window_with_unequal_slopes() -> None:
    """Slopes 1.2 decades apart differ by 0.13 at (-3.4, -2.2) and by 0.064, below 2.3 / 30, at (-3.5, -2.3)."""
    found = RULES["slide"](curve_of(sweep_lrs(81), cosine_valley(sweep_lrs(81))))
    assert decades(found) == pytest.approx(-3.4, abs=0.11)


def test_largest_drop_is_the_lr_after_the_largest_decrease_of_the_causal_average() -> None:
    """Without smoothing the drops are 0.5, 2, 1: the second one is taken by the step at 0.4."""
    curve = curve_of(np.array([0.1, 0.2, 0.4, 0.8, 1.6]), np.array([5.0, 4.5, 2.5, 1.5, 9.0]), beta=0.0)
    assert RULES["largest_drop"](curve) == 0.4


def test_largest_drop_lags_with_the_causal_average() -> None:
    """It is defined on the causal EMA; steps 8, 0, 0 with memory one half average to 8, 8/3, 8/7."""
    curve = curve_of(np.array([0.1, 0.2, 0.4]), np.array([8.0, 0.0, 0.0]), beta=0.5)
    assert curve.causal == pytest.approx([8.0, 8 / 3, 8 / 7], rel=1e-12)
    assert RULES["largest_drop"](curve) == 0.2


def test_largest_drop_of_a_rise_is_none() -> None:
    """Catalogue row 28: no drop, no number."""
    assert RULES["largest_drop"](curve_of(LRS, np.linspace(1.0, 2.0, 100))) is None


def test_steepest_is_not_drawn_to_the_left_end() -> None:
    """Catalogue row 30: against LR itself, this wide sigmoid is steepest at 1e-7, where it has hardly begun to fall."""
    found = RULES["steepest"](curve_of(sweep_lrs(81), sigmoid_fall(sweep_lrs(81), at=-3.0, width=0.5)))
    assert found == pytest.approx(1e-3, rel=1e-9)


def test_steepest_of_a_linear_sweep_is_read_against_log_lr() -> None:
    """Catalogue row 30: the spacing of the steps must not move the landmark; against LR itself it lies at 10**-1.5."""
    lrs = np.linspace(0.001, 1.0, 400)
    found = RULES["steepest"](curve_of(lrs, sigmoid_fall(lrs, at=-1.0, width=0.3)))
    assert decades(found) == pytest.approx(-1.0, abs=0.15)


def test_steepest_at_the_very_first_step_is_a_suggestion() -> None:
    """Catalogue row 27: torch-lr-finder took index 0 for "nothing found"."""
    curve = curve_of(LRS, fall_and_blow_up(LRS))
    first_is_steepest = dataclasses.replace(curve, slope=np.linspace(-1.0, 0.0, 100))
    assert RULES["steepest"](first_is_steepest) == pytest.approx(1e-7, rel=1e-9)


@pytest.mark.parametrize("std", [0.0, 0.01, 0.05])
def test_auto_lies_between_the_steepest_point_and_the_blow_up(std: float) -> None:
    """What a user asks for: past the fastest descent (1e-3), short of the divergence (10**-0.5)."""
    assert_all_with_lr(suggestions(fall_and_blow_up(LRS), diverged(), std=std), Verdict.OK, -3.0, -0.5)


# Invariance: the unit and the zero of a loss, and the unit of a learning rate, are conventions.


@every_rule
@PROPERTY
@a_good_curve
def test_rule_ignores_a_shift_of_the_loss(
    name: str,
    num_steps: int,
    seed: int,
    std: float,
    at: float,
    width: float,
    diverges_at: float,
    log_factor: float,
    shift: float,
) -> None:
    """Catalogue row 5: negative and near-zero losses are losses like any other."""
    losses = good_curve(num_steps, seed, std, at, width, diverges_at)
    expected = RULES[name](curve_of(sweep_lrs(num_steps), losses))
    assert_same_lr(RULES[name](curve_of(sweep_lrs(num_steps), losses + shift)), expected)


@every_rule
@PROPERTY
@a_good_curve
def test_rule_ignores_a_positive_factor_on_the_loss(
    name: str,
    num_steps: int,
    seed: int,
    std: float,
    at: float,
    width: float,
    diverges_at: float,
    log_factor: float,
    shift: float,
) -> None:
    """Bits or nats, sum or mean: the LR of the landmark is the same."""
    losses = good_curve(num_steps, seed, std, at, width, diverges_at)
    expected = RULES[name](curve_of(sweep_lrs(num_steps), losses))
    assert_same_lr(RULES[name](curve_of(sweep_lrs(num_steps), losses * 10**log_factor)), expected)


@every_rule
@PROPERTY
@a_good_curve
def test_rule_follows_a_factor_on_all_learning_rates(
    name: str,
    num_steps: int,
    seed: int,
    std: float,
    at: float,
    width: float,
    diverges_at: float,
    log_factor: float,
    shift: float,
) -> None:
    """Catalogue row 30: LRs ten times higher with the same losses means an LR ten times higher, to 1e-9."""
    losses = good_curve(num_steps, seed, std, at, width, diverges_at)
    expected = RULES[name](curve_of(sweep_lrs(num_steps), losses))
    found = RULES[name](curve_of(sweep_lrs(num_steps) * 10**log_factor, losses))
    assert_same_lr(found, expected, factor=10**log_factor)


@PROPERTY
@a_good_curve
def test_suggestion_and_interval_share_the_invariances(
    num_steps: int,
    seed: int,
    std: float,
    at: float,
    width: float,
    diverges_at: float,
    log_factor: float,
    shift: float,
) -> None:
    """The interval is redrawn noise: it must scale and stay with its curve exactly as the LR does."""
    losses, lrs, factor = good_curve(num_steps, seed, std, at, width, diverges_at), sweep_lrs(num_steps), 10**log_factor
    plain = suggest(records(lrs, losses), diverged())
    shifted = suggest(records(lrs, losses + shift), diverged())
    scaled = suggest(records(lrs, losses * factor), diverged())
    moved = suggest(records(lrs * factor, losses), diverged())
    for other, by in ((shifted, 1.0), (scaled, 1.0), (moved, factor)):
        assert_same_lr(other.lr, plain.lr, factor=by)
        assert (other.interval is None) == (plain.interval is None)
        for found, expected in zip(other.interval or (), plain.interval or (), strict=True):
            assert_same_lr(found, expected, factor=by)


# What a suggestion carries.


@every_rule
def test_interval_holds_the_lr_and_a_factor_of_two_to_either_side(name: str) -> None:
    """An interval narrower than hand tuning would resolve claims what a sweep cannot know (10**0.3 = 1.995)."""
    for seed in SEEDS:
        suggestion = suggest(records(LRS, fall_and_blow_up(LRS) + noise(seed, std=0.05)), diverged(), method=name)
        assert suggestion.lr is not None
        assert suggestion.interval is not None
        low, high = suggestion.interval
        assert low <= suggestion.lr / 1.995
        assert high >= suggestion.lr * 1.995


def test_clean_curve_leaves_the_error_of_the_distances() -> None:
    """Without noise nothing moves when it is redrawn: how far the best LR lies below a landmark differs by job."""
    interval = suggest(records(sweep_lrs(81), cosine_valley(sweep_lrs(81))), diverged(80)).interval
    assert interval is not None
    assert decades(interval[1] / interval[0]) == pytest.approx(1.37, abs=0.03)


def test_noise_widens_the_interval() -> None:
    """How sure a suggestion is has to show: with noise of a sixth of the fall it is less sure than without."""
    lrs = sweep_lrs(81)
    widths = []
    for seed in SEEDS:
        interval = suggest(records(lrs, cosine_valley(lrs) + noise(seed, 81, std=0.35)), diverged(80)).interval
        assert interval is not None
        widths.append(decades(interval[1]) - decades(interval[0]))
    assert min(widths) >= 0.8
    assert np.median(widths) > 0.82


def test_candidates_name_every_rule_and_the_method_picks_one() -> None:
    """Users compare rules on one curve: the names are the contract of suggestion.method."""
    steps = records(LRS, fall_and_blow_up(LRS) + noise(0, std=0.02))
    assert sorted(RULES) == sorted(ALL_RULES)
    for name in ALL_RULES:
        suggestion = suggest(steps, diverged(), method=name)
        assert suggestion.method == name
        assert sorted(suggestion.candidates) == sorted(ALL_RULES)
        assert suggestion.lr == suggestion.candidates[name]


def test_unknown_method_lists_the_known_ones() -> None:
    """A wrong choice should cost one look at the message."""
    expected = "one of auto, steepest, minimum, valley, slide, largest_drop; got best"
    with pytest.raises(ValueError, match=expected):
        suggest([], [], method="best")


def test_same_records_give_the_same_suggestion_bit_for_bit() -> None:
    """Law 4: every rank computes it by itself, bootstrap included, and none may get another answer."""
    steps = records(LRS, fall_and_blow_up(LRS) + noise(5, std=0.1))
    assert suggest(steps, diverged()) == suggest(list(steps), diverged())


# Verdicts on curves whose nature is known.


@pytest.mark.parametrize("constant", [2.3, 0.0, -5.0, 1e-8, 1e300])
def test_constant_curve_is_flat(constant: float) -> None:
    """Catalogue row 28: fastai suggests 1e-7 or 0.373 for a constant, depending on the rule."""
    suggestion = suggest(records(LRS, np.full(100, constant)), ended())
    assert suggestion.verdict == Verdict.FLAT
    assert_no_lr(suggestion)


@pytest.mark.parametrize("std", [1e-4, 0.002, 0.02])
def test_flat_curve_with_small_noise_is_flat(std: float) -> None:
    """Catalogue row 28: it neither falls nor rises, and advice to lower start_lr would be wrong."""
    assert_all_without_lr(suggestions(np.full(100, 2.3), ended(), std=std), Verdict.FLAT)


@pytest.mark.parametrize("std", [1.0, 20.0])
def test_pure_large_noise_is_too_noisy(std: float) -> None:
    """Catalogue row 28: noise as large as the loss may hide a descent; the way out is averaging, not another range."""
    assert_all_without_lr(suggestions(np.full(100, 2.3), ended(), std=std), Verdict.TOO_NOISY, "raise sweep.repeats")


RISES = {
    "in a straight line": 2.3 + 0.1 * np.arange(100),
    "flat first, then ever faster": 2.3 + np.maximum(np.log10(LRS) + 3.0, 0.0) ** 2,
    "flat first, then in a line": 2.3 + np.maximum(np.log10(LRS) + 4.0, 0.0),
    "by a tenth a step": np.asarray(2.3 * 1.1 ** np.arange(100)),
    "in one step": with_tail(np.full(100, 2.3), first=50, value=4.0),
}


@pytest.mark.parametrize("std", [0.0, 0.02])
@pytest.mark.parametrize("shape", RISES)
def test_rising_curve_has_no_descent(shape: str, std: float) -> None:
    """Catalogue row 28: the optimum, if any, lies below start_lr; torch-lr-finder and fastai still give a number."""
    found = suggestions(RISES[shape], ended(), std=std)
    assert_all_without_lr(found, Verdict.NO_DESCENT, "lower sweep.start_lr")


@pytest.mark.parametrize("std", [0.0, 0.02, 0.1])
def test_curve_cut_short_while_falling_has_no_divergence_and_no_lr(std: float) -> None:
    """Catalogue row 28: the last LR wins every argmin there, only because the sweep ended (at 10**-2.7)."""
    found = suggestions(fall_and_blow_up(LRS), ended(53), std=std, length=54)
    assert_all_without_lr(
        found, Verdict.NO_DIVERGENCE, "still falls at the last learning rate 1.9e-03; raise sweep.end_lr"
    )


@pytest.mark.parametrize("std", [0.0, 0.01, 0.05])
def test_fall_to_a_plateau_without_divergence_keeps_its_lr(std: float) -> None:
    """Catalogue row 28: with three flat decades after it the fall is seen whole: it does not "still fall"."""
    found = suggestions(sigmoid_fall(LRS, at=-3.0, width=0.3), ended(), std=std)
    assert_all_with_lr(found, Verdict.NO_DIVERGENCE, -3.1, 1.0)


def test_blow_up_of_a_curve_without_noise_and_fall_has_no_lr() -> None:
    """Where no noise hides a fall there is none: something else is wrong."""
    losses = 2.3 + np.maximum(0.0, 20 * (np.log10(LRS) + 1))
    assert_all_without_lr(suggestions(losses, diverged(), std=0.0), Verdict.NO_DESCENT)


@pytest.mark.parametrize("shift", [-2.3, 10.0, 1000.0])
def test_zero_of_the_loss_does_not_matter_to_a_curve_without_a_fall(shift: float) -> None:
    """Nor whether an LR is given at all; the unit of the LR moves it by exactly that, on any rounding."""
    losses = 2.3 + np.maximum(0.0, 20 * (np.log10(LRS) + 1)) + noise(0, std=0.03)
    expected = suggest(records(LRS, losses), diverged()).lr
    assert expected is not None
    assert_same_lr(suggest(records(LRS, losses + shift), diverged()).lr, expected)
    for unit in np.geomspace(1e-3, 1e3, 31):
        assert_same_lr(suggest(records(LRS * unit, losses), diverged()).lr, expected, factor=unit)


@pytest.mark.parametrize("std", [0.03, 0.1])
def test_blow_up_of_a_noisy_curve_without_a_fall_keeps_its_distance(std: float) -> None:
    """Small batches: the fall drowns in noise, the divergence at 1e-1 is still a fact; an 8th of it is 10**-1.9."""
    losses = 2.3 + np.maximum(0.0, 20 * (np.log10(LRS) + 1))
    assert_all_with_lr(suggestions(losses, diverged(), std=std), Verdict.NO_DESCENT, -7.0, -1.8)
    assert "raise sweep.num_steps" in suggestions(losses, diverged(), std=std)[0].reason


def test_rules_that_read_a_fall_say_none_where_there_is_none() -> None:
    """The steepest point of noise is an accident: only `auto` has the blow-up to go by."""
    losses = 2.3 + np.maximum(0.0, 20 * (np.log10(LRS) + 1)) + noise(0, std=0.1)
    found = suggest(records(LRS, losses), diverged(), method="valley")
    assert (found.lr, found.interval, found.verdict) == (None, None, Verdict.NO_DESCENT)
    assert found.reason == "the rule valley found no point; use suggestion.method=auto"
    assert [name for name, lr in found.candidates.items() if lr is not None] == ["auto"]


@pytest.mark.parametrize("num_steps", [11, 30, 100])
@pytest.mark.parametrize("growth", [1.0, 1.5, 3.0])
def test_curve_that_diverges_at_its_first_step_has_no_descent(growth: float, num_steps: int) -> None:
    """start_lr is already too high: "too noisy" would send the user to more repeats of the same explosion."""
    losses = np.concatenate([[2.3], 1e3 * growth ** np.arange(num_steps - 1)])
    suggestion = suggest(records(LRS, losses), diverged(num_steps - 1))
    assert suggestion.verdict == Verdict.NO_DESCENT
    assert "lower sweep.start_lr" in suggestion.reason
    assert_no_lr(suggestion)


def test_nan_at_the_first_step_is_non_finite_at_start() -> None:
    """Catalogue row 4: fail at once and name the step, no suggestion."""
    suggestion = suggest(records(LRS, [math.nan]), non_finite(0))
    assert suggestion.verdict == Verdict.NON_FINITE_AT_START
    assert "step 0" in suggestion.reason
    assert_no_lr(suggestion)


@pytest.mark.parametrize("bad_step", [0, 1, 2])
def test_one_repeat_that_starts_non_finite_is_enough(bad_step: int) -> None:
    """Catalogue row 4: with repeats, a good first one must not hide that the setup gives NaN at the lowest LR."""
    broken = records(LRS, [2.3] * bad_step + [math.nan], repeat=1)
    stops = [*diverged(), *non_finite(bad_step)]
    suggestion = suggest(records(LRS, fall_and_blow_up(LRS)) + broken, stops)
    assert suggestion.verdict == Verdict.NON_FINITE_AT_START
    assert_no_lr(suggestion)


@pytest.mark.parametrize("std", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_after_a_good_fall_is_a_divergence(bad: float, std: float) -> None:
    """Catalogue rows 2 and 3: trim the point, then suggest below it (10**-2.15); NaN is how many sweeps diverge."""
    found = suggestions(with_tail(fall_and_blow_up(LRS), first=60, value=bad), non_finite(60), std=std, length=61)
    assert_all_with_lr(found, Verdict.OK, -4.0, -2.15)


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_record_does_not_change_any_rule(name: str, bad: float) -> None:
    """Catalogue rows 2 and 3: torch-lr-finder returns the NaN's own LR, fastai's steepest the infinity's."""
    losses = (fall_and_blow_up(LRS) + noise(1, std=0.02))[:75]
    with_bad = suggest(records(LRS, [*losses, bad]), non_finite(75), method=name)
    without = suggest(records(LRS, losses), non_finite(75), method=name)
    assert with_bad == without
    assert with_bad.lr is not None


def test_rule_that_finds_nothing_does_not_call_a_good_curve_flat() -> None:
    """The verdict is on the curve: this one falls by 1.6 and then diverges; only `slide` sees no window in it."""
    steps = records(LRS, fall_and_blow_up(LRS)[:60] + noise(0, 60, std=0.02))
    suggestion = suggest(steps, non_finite(60), method="slide")
    assert suggestion.lr is None
    assert suggestion.interval is None
    assert "slide" in suggestion.reason
    assert suggestion.verdict == Verdict.OK


@every_rule
@pytest.mark.parametrize("num_points", [0, 1, 2, 3, 9])
def test_too_few_points_are_a_verdict_not_an_index_error(num_points: int, name: str) -> None:
    """Catalogue row 27: fastai raises IndexError, Lightning applies lr=None."""
    suggestion = suggest(records(LRS, fall_and_blow_up(LRS)[:num_points]), diverged(9), method=name)
    assert suggestion.verdict == Verdict.TOO_FEW_POINTS
    assert_no_lr(suggestion)


@pytest.mark.parametrize("num_points", [0, 1, 9])
def test_reason_names_the_points_that_are_needed(num_points: int) -> None:
    """Catalogue row 27: a typed reason is only of use if it names what to change."""
    suggestion = suggest(records(LRS, fall_and_blow_up(LRS)[:num_points]), diverged(9))
    assert suggestion.reason == "fewer than 10 finite points; lower sweep.start_lr or raise sweep.num_steps"


@pytest.mark.parametrize("num_points", range(10, 30))
def test_short_sweeps_never_raise(num_points: int) -> None:
    """Catalogue row 27: from ten points on every rule has to find its window, or report that it found none."""
    lrs = sweep_lrs(num_points)
    for losses in (
        fall_and_blow_up(lrs),
        np.ones(num_points),
        np.arange(float(num_points)),
        -np.arange(float(num_points)),
    ):
        for name in ALL_RULES:
            suggestion = suggest(records(lrs, losses), diverged(num_points - 1), method=name)
            assert (suggestion.lr is None) == (suggestion.interval is None)


def test_no_records_at_all_are_too_few_points() -> None:
    """Catalogue row 27: a sweep that was stopped before its first step still ends with a suggestion record."""
    suggestion = suggest([], [])
    assert suggestion.verdict == Verdict.TOO_FEW_POINTS
    assert_no_lr(suggestion)


def test_negative_losses_get_a_suggestion() -> None:
    """Catalogue row 5: an ELBO or a contrastive loss below zero throughout is no reason for silence."""
    suggestion = suggest(records(LRS, fall_and_blow_up(LRS) - 2000.0 + noise(0, std=0.02)), diverged())
    assert suggestion.verdict == Verdict.OK
    assert -3.0 < decades(suggestion.lr) < -0.5


def test_huge_losses_neither_raise_nor_warn() -> None:
    """A tail of 1e300 is what an explosion looks like in float64; warnings are errors here."""
    suggestion = suggest(records(LRS, with_tail(fall_and_blow_up(LRS), first=85, value=1e300)), diverged())
    assert suggestion.verdict == Verdict.OK
    assert -3.0 < decades(suggestion.lr) < -0.5


# Robustness: what happens elsewhere in the sweep must not move the landmark.


@zero_phase_rule
@pytest.mark.parametrize("spike", [50.0, 1e6])
def test_early_spike_does_not_win(name: str, spike: float) -> None:
    """Catalogue row 29: one bad batch at the start gives the steepest fall of the whole sweep (Lightning#1767)."""
    smooth = fall_and_blow_up(LRS) + noise(2, std=0.02)
    spiked = smooth.copy()
    spiked[3] = spike
    plain, found = RULES[name](curve_of(LRS, smooth)), RULES[name](curve_of(LRS, spiked))
    assert decades(found) == pytest.approx(decades(plain), abs=1.5 * STEP_DECADES)


@zero_phase_rule
@pytest.mark.parametrize("num_steps", [20, 30, 50])
def test_first_loss_alone_does_not_set_the_level_of_a_short_sweep(num_steps: int, name: str) -> None:
    """Catalogue row 29: one bad first batch must not raise the cap of the divergence to its own height."""
    lrs = sweep_lrs(num_steps)
    smooth = with_tail(fall_and_blow_up(lrs, diverges_at=9.0), first=num_steps * 3 // 4, value=400.0)
    spiked = smooth.copy()
    spiked[0] = 50.0
    plain, found = RULES[name](curve_of(lrs, smooth)), RULES[name](curve_of(lrs, spiked))
    assert decades(found) == pytest.approx(decades(plain), abs=2.5 * 8 / (num_steps - 1))


def test_warm_up_noise_does_not_win() -> None:
    """Catalogue row 29: ten noisy first steps, calm afterwards; auto stays within a factor of two of the calm curve."""
    losses = fall_and_blow_up(LRS)
    calm = decades(suggest(records(LRS, losses), diverged()).lr)
    for seed in SEEDS:
        noisy = np.concatenate([losses[:10] + noise(seed, 10, std=0.3), losses[10:]])
        assert decades(suggest(records(LRS, noisy), diverged()).lr) == pytest.approx(calm, abs=0.3)


@pytest.mark.parametrize("first", [81, 87, 93])
@pytest.mark.parametrize("length", [3, 19])
@pytest.mark.parametrize("height", [3.0, 20.0, 400.0, 1e9])
def test_height_of_the_tail_does_not_move_auto(height: float, length: int, first: int) -> None:
    """Law 6: smoothing a tail of 3, 20, 400 backwards moves a minimum at 1e-1 to 1e-6; a mild 2.5, by a step."""
    for seed in range(10):
        losses = (fall_and_blow_up(LRS, diverges_at=9.0) + noise(seed, std=0.02))[: first + length]
        mild = suggest(records(LRS, with_tail(losses, first=first, value=2.5)), diverged())
        found = suggest(records(LRS, with_tail(losses, first=first, value=height)), diverged())
        assert decades(found.lr) == pytest.approx(decades(mild.lr), abs=1.01 * STEP_DECADES)


@zero_phase_rule
@pytest.mark.parametrize("height", [3.0, 20.0, 400.0])
def test_rough_tail_never_draws_a_rule_into_the_blow_up(name: str, height: float) -> None:
    """Law 6: above 10**-0.5 the loss jumps about far above the level; an LR from there would destroy a training."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        tail = height * rng.lognormal(0.0, 0.5, 20)
        losses = with_tail(fall_and_blow_up(LRS, diverges_at=9.0) + noise(seed, std=0.02), first=80, value=tail)
        found = RULES[name](curve_of(LRS, losses))
        assert found is None or found < LRS[80]


def test_suggestion_is_in_the_unit_of_the_recorded_base_lr() -> None:
    """Catalogue row 31: ten times the LRs, ten times the answer; no scheduler's or group's factor comes in."""
    steps = records(10 * LRS, cosine_valley(LRS))
    assert decades(suggest(steps, diverged(), method="minimum").lr) == pytest.approx(-1.0, abs=STEP_DECADES)


def test_repeats_average_noise_away() -> None:
    """Repeats exist for this: noise of a sixth of the fall leaves auto within half a decade once sixteen are pooled."""
    clean = decades(suggest(records(LRS, fall_and_blow_up(LRS)), diverged()).lr)
    for seed in SEEDS:
        steps = [
            step
            for repeat in range(16)
            for step in records(LRS, fall_and_blow_up(LRS) + noise(100 * seed + repeat, std=0.3), repeat=repeat)
        ]
        suggestion = suggest(steps, diverged() * 16)
        assert suggestion.verdict == Verdict.OK
        assert decades(suggestion.lr) == pytest.approx(clean, abs=0.5)


def test_repeat_that_diverged_early_moves_the_lowest_point_to_its_left() -> None:
    """Where any repeat has blown up, training is not safe, however well the others still do."""
    survivor = records(LRS, fall_and_blow_up(LRS))
    victim = records(LRS, with_tail(fall_and_blow_up(LRS), first=60, value=50.0)[:64], repeat=1)
    suggestion = suggest(survivor + victim, [*diverged(), *diverged(63)], method="minimum")
    assert decades(suggestion.lr) <= decades(LRS[60]) - 1.0 + 1e-9


def test_repeats_that_went_nan_early_move_the_lowest_point_to_their_left() -> None:
    """NaN is a divergence as well: two of three repeats are dead from step 50 on, with their last good loss in hand."""
    steps = records(LRS, fall_and_blow_up(LRS))
    for repeat in (1, 2):
        steps += records(LRS, [*fall_and_blow_up(LRS)[:50], math.nan], repeat=repeat)
    suggestion = suggest(steps, [*diverged(), *non_finite(50), *non_finite(50)], method="minimum")
    assert decades(suggestion.lr) <= decades(LRS[50]) - 1.0 + 1e-9


def test_interrupted_sweep_that_has_seen_the_divergence_still_suggests() -> None:
    """A signal after the interesting part costs nothing: the records decide, not the stop reason."""
    losses = fall_and_blow_up(LRS)[:88] + noise(0, 88, std=0.02)
    interrupted = Stop(reason=StopReason.INTERRUPTED, step=87)
    assert suggest(records(LRS, losses), [interrupted]).verdict == Verdict.OK


# The subsequence of `valley`.


def brute_force_length(values: list[float]) -> int:
    """Length of the longest strictly decreasing subsequence, by trying all of them."""
    for length in range(len(values), 0, -1):
        for chosen in combinations(values, length):
            if all(a > b for a, b in pairwise(chosen)):
                return length
    return 0


@PROPERTY
@given(values=st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=9))
def test_decreasing_subsequence_is_a_longest_one(values: list[float]) -> None:
    """Patience sorting against trying all of them, with ties, which a strict descent must not use."""
    indices = longest_decreasing_subsequence(np.array(values))
    chosen = [values[i] for i in indices]
    assert indices == sorted(set(indices))
    assert all(a > b for a, b in pairwise(chosen))
    assert len(indices) == brute_force_length(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], [0]), ([1.0, 1.0, 1.0], 1), ([3.0, 2.0, 1.0], [0, 1, 2]), ([9.0, 1.0, 8.0, 2.0, 7.0], [0, 2, 4])],
)
def test_decreasing_subsequence_of_literal_values(values: list[float], expected: list[int] | int) -> None:
    """Unique answers are known as indices; among equal values any single one will do."""
    indices = longest_decreasing_subsequence(np.array(values))
    assert (len(indices) if isinstance(expected, int) else indices) == expected
