from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lrrunner.core.curve import Curve, curve_from_steps, noise_std, num_start_points, pooled, pooled_steps
from lrrunner.records import Step
from tests.unit.core.curves import FloatArray, fall_and_blow_up, noise, records, sigmoid_fall, sweep_lrs, with_tail

LRS = [0.1, 0.2, 0.4, 0.8]


def curve_of(lrs: FloatArray, losses: FloatArray, *, beta: float = 0.9) -> Curve:
    """The curve of one repeat that has one."""
    curve = curve_from_steps(records(lrs, losses), beta=beta)
    assert curve is not None
    return curve


def pooled_lists(steps: list[Step]) -> tuple[list[float], list[float]]:
    """Pooled points as plain lists."""
    lr, loss, *_ = pooled(steps)
    return lr.tolist(), loss.tolist()


def test_one_repeat_is_its_own_pool() -> None:
    """The common case must come through untouched."""
    assert pooled_lists(records(LRS, [4.0, 3.0, 2.0, 5.0])) == (LRS, [4.0, 3.0, 2.0, 5.0])


def test_repeats_are_averaged_step_by_step() -> None:
    """Law 1: repeats differ in data order only, so their mean is the less noisy curve."""
    steps = records(LRS, [4.0, 3.0, 2.0, 5.0]) + records(LRS, [6.0, 4.0, 2.0, 9.0], repeat=1)
    assert pooled_lists(steps) == (LRS, [5.0, 3.5, 2.0, 7.0])


def test_repeat_that_stopped_early_holds_its_last_loss() -> None:
    """Averaging only the survivors would make the curve fall where a repeat has just blown up."""
    steps = records(LRS, [4.0, 3.0, 2.0, 5.0]) + records(LRS, [4.0, 9.0], repeat=1)
    assert pooled_lists(steps) == (LRS, [4.0, 6.0, 5.5, 7.0])


def test_order_of_the_records_does_not_matter() -> None:
    """Records may be read back from a file that was written in another order."""
    steps = records(LRS, [4.0, 3.0, 2.0, 5.0]) + records(LRS, [4.0, 9.0], repeat=1)
    assert pooled_lists(steps[::-1]) == (LRS, [4.0, 6.0, 5.5, 7.0])


def test_skipped_steps_are_no_points() -> None:
    """Law 9: an overflowed fp16 step trained nothing; its retry at the same step is the point."""
    overflowed = Step(step=1, lr=0.2, loss=50.0, skipped=True)
    steps = records(LRS, [4.0, 3.0, 2.0, 5.0])
    assert pooled_lists([steps[0], overflowed, *steps[1:]]) == (LRS, [4.0, 3.0, 2.0, 5.0])


def test_step_that_was_only_ever_skipped_is_missing() -> None:
    """A step whose retries all overflowed has no loss, and gets none."""
    steps = records(LRS, [4.0, 3.0, 2.0, 5.0])
    steps[1] = dataclasses.replace(steps[1], skipped=True)
    assert pooled_lists(steps) == ([0.1, 0.4, 0.8], [4.0, 2.0, 5.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_losses_are_no_points(bad: float) -> None:
    """Catalogue rows 2 and 3: a NaN or an infinity in the curve becomes the answer of every argmin."""
    assert pooled_lists(records(LRS, [4.0, 3.0, 2.0, bad])) == ([0.1, 0.2, 0.4], [4.0, 3.0, 2.0])


def test_only_the_last_pass_counts() -> None:
    """Auto-range adds a pass because the range of the first one was wrong; the two must not mix."""
    first = records(LRS, [4.0, 4.0, 4.0, 4.0])
    last = records([0.8, 1.6], [3.0, 2.0], sweep_pass=1)
    assert pooled_lists(first + last) == ([0.8, 1.6], [3.0, 2.0])
    assert pooled_lists(last + first) == ([0.8, 1.6], [3.0, 2.0])


def test_no_records_pool_to_nothing() -> None:
    """Catalogue row 27: a sweep may fail before its first step."""
    assert pooled_lists([]) == ([], [])
    assert pooled_lists(records(LRS, [math.nan])) == ([], [])


def test_pooled_steps_carry_mean_loss_mean_norm_and_the_average_of_the_mean() -> None:
    """What MLflow shows as `loss` and `smoothed_loss` is the pooled curve: 5, 3 and its EMA (1.25 + 1.5) / 0.75."""
    repeats = [
        [
            dataclasses.replace(step, grad_norm=norm)
            for step, norm in zip(records(LRS, losses, repeat=k), norms, strict=True)
        ]
        for k, (losses, norms) in enumerate([([4.0, 2.0], [1.0, 8.0]), ([6.0, 4.0], [3.0, 2.0])])
    ]
    steps = pooled_steps([step for repeat in repeats for step in repeat], beta=0.5)
    assert [(step.step, step.lr, step.loss, step.grad_norm) for step in steps] == [
        (0, 0.1, 5.0, 2.0),
        (1, 0.2, 3.0, 5.0),
    ]
    assert [step.smoothed_loss for step in steps] == pytest.approx([5.0, 11 / 3], rel=1e-12)


def evaluated(losses: list[float], val_losses: list[float | None], *, repeat: int = 0) -> list[Step]:
    """Records of a sweep that monitors the validation loss, four batches each."""
    return [
        dataclasses.replace(step, val_loss=val_loss, is_monitored=val_loss is not None, num_items=64.0, val_items=256.0)
        for step, val_loss in zip(records(sweep_lrs(len(losses)), losses, repeat=repeat), val_losses, strict=True)
    ]


def test_a_monitored_validation_loss_is_the_curve() -> None:
    """Steps that were not evaluated are no points; both losses are pooled under their own names."""
    steps = evaluated([9.0, 8.0, 7.0], [4.0, None, 2.0]) + evaluated([5.0, 4.0, 3.0], [6.0, None, 4.0], repeat=1)
    assert pooled(steps).loss.tolist() == [5.0, 3.0]
    assert [(step.step, step.loss, step.val_loss) for step in pooled_steps(steps, beta=0.5)] == [
        (0, 7.0, 5.0),
        (2, 5.0, 3.0),
    ]


@pytest.mark.parametrize(
    ("losses", "val_losses"), [([1, 1, math.nan, 1], [2, 2, None, 2]), ([1] * 4, [2, 2, math.nan, 2])]
)
def test_a_loss_of_either_kind_that_is_not_finite_ends_the_curve(
    losses: list[float], val_losses: list[float | None]
) -> None:
    """Row 1: what follows was trained from there."""
    assert pooled(evaluated(losses, val_losses)).loss.tolist() == [2, 2]


def test_validation_losses_are_as_uncertain_as_the_samples_they_are_of() -> None:
    """Training losses differ by 0.4 from step to step, hence have a deviation of 1.48 * 0.4 / sqrt(2) a batch; four
    batches were evaluated, half of that. Their own wriggles of 1e-6 are those of always the same samples.
    """
    losses = [2.0 + 0.4 * (i % 2) for i in range(40)]
    curve = curve_from_steps(evaluated(losses, [2.0 + 1e-6 * (i % 3) for i in range(40)]), beta=0.9)
    assert curve is not None
    assert curve.noise == pytest.approx(0.5 * 1.4826 * 0.4 / math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("num_points", [0, 1])
def test_fewer_than_two_points_make_no_curve(num_points: int) -> None:
    """Catalogue row 27: nothing to draw a line through, and no IndexError either."""
    assert curve_from_steps(records(LRS[:num_points], [1.0] * num_points), beta=0.9) is None


@pytest.mark.parametrize("num_points", [2, 3, 4, 5])
def test_very_short_curves_are_finite(num_points: int) -> None:
    """Catalogue row 27: a curve too short to judge is still a curve to plot."""
    curve = curve_of(sweep_lrs(num_points), np.arange(num_points, 0.0, -1.0))
    assert np.isfinite(curve.smoothed).all()
    assert np.isfinite(curve.slope).all()


def test_straight_fall_keeps_its_values_and_its_slope_per_decade() -> None:
    """Slopes are per decade of LR; a line is the one curve for which they are known exactly (off the capped start)."""
    lrs = sweep_lrs(81)
    line = 2.0 - 0.25 * (np.log10(lrs) + 7.0)
    curve = curve_of(lrs, line)
    assert curve.slope[25:] == pytest.approx(np.full(56, -0.25), abs=1e-9)
    assert curve.smoothed[25:] == pytest.approx(line[25:], abs=1e-9)
    assert curve.minimum_index == 80


def test_level_is_the_median_of_the_first_tenth() -> None:
    """Catalogue row 29: a mean would let one early spike of 1000 set the level."""
    losses = np.full(100, 1.0)
    losses[:10] = [2.0, 2.0, 1000.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert curve_of(sweep_lrs(), losses).level == 2.0


def test_divergence_is_capped_at_the_initial_level() -> None:
    """Law 6: without noise the cap is the level itself, so how wildly a loss explodes no longer matters."""
    lrs = sweep_lrs()
    curve = curve_of(lrs, with_tail(np.full(100, 2.0), first=60, value=400.0))
    assert curve.loss.tolist() == [2.0] * 100
    assert (curve.level, curve.noise) == (2.0, 0.0)


def test_cap_leaves_room_for_noise() -> None:
    """Cutting at the bare level would turn symmetric noise at the start into a bias downwards."""
    losses = 2.0 + noise(0, 400, std=0.1)
    kept = curve_of(sweep_lrs(400), losses).loss == losses
    assert kept.mean() > 0.97


def test_causal_average_is_not_capped() -> None:
    """Law 6: `largest_drop` is defined on the plain causal EMA: memory one half weighs the third loss by 4 / 7."""
    curve = curve_of(np.array([0.1, 0.2, 0.3]), np.array([1.0, 1.0, 9.0]), beta=0.5)
    assert curve.causal == pytest.approx([1.0, 1.0, 1.0 + 8.0 * 4 / 7], rel=1e-12)


def test_fall_reaches_from_level_to_the_lowest_smoothed_loss() -> None:
    """The depth of the curve is the unit in which rules measure; this one falls by 1.8 onto a long plateau."""
    assert curve_of(sweep_lrs(), sigmoid_fall(sweep_lrs(), at=-4.0, width=0.2)).fall == pytest.approx(1.8, abs=0.01)


def test_long_sweeps_are_averaged_in_neighbouring_groups() -> None:
    """1200 steps become 600 pairs: geometric mean of the LRs, mean of the losses (3, 5 -> 4)."""
    lrs = np.asarray(1e-7 * 1.01 ** np.arange(1200), dtype=np.float64)
    losses = np.where(np.arange(1200) % 2 == 0, 3.0, 5.0)
    curve = curve_of(lrs, losses)
    assert len(curve.lr) == 600
    assert curve.lr[0] == pytest.approx(1e-7 * math.sqrt(1.01), rel=1e-12)
    assert curve.lr[599] == pytest.approx(1e-7 * 1.01**1198 * math.sqrt(1.01), rel=1e-9)
    assert curve.loss.tolist() == [4.0] * 600


def test_six_hundred_steps_are_left_alone() -> None:
    """The boundary: no averaging where none is needed."""
    assert curve_of(sweep_lrs(600), fall_and_blow_up(sweep_lrs(600))).lr.tolist() == sweep_lrs(600).tolist()


def test_noise_of_alternating_losses() -> None:
    """Every difference is 1: 1.4826 / sqrt(2) = 1.04836."""
    assert noise_std(np.array([0.0, 1.0, 0.0, 1.0, 0.0])) == pytest.approx(1.048356, rel=1e-6)


def test_noise_ignores_one_jump() -> None:
    """Catalogue row 29: one outlier, or the cliff of a divergence, is not noise."""
    losses = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 5000.0, 1.0, 0.0, 1.0])
    assert noise_std(losses) == pytest.approx(1.048356, rel=1e-6)


@pytest.mark.parametrize("num_losses", [0, 1])
def test_noise_of_too_few_losses_is_zero(num_losses: int) -> None:
    """No difference, no noise, no NaN."""
    assert noise_std(np.ones(num_losses)) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_flat_curve_is_its_standard_deviation(seed: int) -> None:
    """Every verdict compares with the noise: from 99 differences it is known to a fifth, so 40 % is generous."""
    curve = curve_of(sweep_lrs(), 2.3 + noise(seed, std=0.1))
    assert curve.noise == pytest.approx(0.1, rel=0.4)


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_good_curve_is_not_its_fall_nor_its_explosion(seed: int) -> None:
    """A trend is not noise: the curve falls by 1.8 and explodes by 1000, its noise stays 0.1."""
    curve = curve_of(sweep_lrs(), fall_and_blow_up(sweep_lrs()) + noise(seed, std=0.1))
    assert curve.noise == pytest.approx(0.1, rel=0.4)


@pytest.mark.parametrize(("num_steps", "expected"), [(100, 10), (41, 5), (600, 60)])
def test_start_is_the_first_tenth_of_an_exponential_sweep(num_steps: int, expected: int) -> None:
    """Where LRs are too small to matter: 0.8 of 8 decades, which hold 0.8 / (8 / 99) = 9 gaps of the default sweep."""
    assert num_start_points(sweep_lrs(num_steps)) == expected


@pytest.mark.parametrize(("num_steps", "expected"), [(21, 3), (41, 5), (81, 9), (161, 17)])
def test_start_does_not_depend_on_the_unit_of_the_lr(num_steps: int, expected: int) -> None:
    """Catalogue row 30: a step exactly on the boundary must not fall to either side of it by rounding."""
    found = [num_start_points(sweep_lrs(num_steps) * 10.0**shift) for shift in np.linspace(-4.0, 4.0, 101)]
    assert found == [expected] * 101


def test_start_of_a_linear_sweep_is_not_most_of_its_decades() -> None:
    """A tenth of the points of 1e-7 ... 10 reaches up to LR 1, far past the fall that it should be the level of."""
    lrs = np.linspace(1e-7, 10.0, 100)
    assert lrs[num_start_points(lrs) - 1] < 1e-5
