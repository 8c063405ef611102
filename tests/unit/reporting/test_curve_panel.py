"""The curve is shown as it was, and a divergence does not hide the rest."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lrrunner.records import (
    RangeTestResult,
    Step,
    Stop,
    StopReason,
)
from lrrunner.reporting.curve_panel import repeat_range
from lrrunner.reporting.sweep_figure import lr_sweep_figure
from tests.unit.reporting.figures import (
    END,
    SUGGESTION,
    curve_axes,
    line,
    records,
    sweep_figure,
    texts,
    u_curve,
    with_gid,
)


@pytest.mark.parametrize("tail", [1e6, 3e38, 1e300])
def test_a_divergence_leaves_the_figure_instead_of_flattening_it(tail: float) -> None:
    """One loss of 1e6 on the axis would turn the descent of 2 into a straight line."""
    figure = sweep_figure(records(lambda lr: u_curve(lr) + tail * (lr > 0.5)))
    bottom, top = curve_axes(figure).get_ylim()
    assert -0.5 < bottom < 0.3
    assert 2.4 < top < 3.5
    assert max(line(figure, "raw loss").get_ydata()) > top


def test_the_loss_axis_holds_the_whole_descent_of_negative_losses() -> None:
    """A log-likelihood may be anywhere below zero; ratios to the minimum mean nothing there."""
    figure = sweep_figure(records(lambda lr: u_curve(lr) - 500))
    bottom, top = curve_axes(figure).get_ylim()
    assert -500.5 < bottom < -499.7
    assert -497.6 < top < -496


def test_the_first_loss_is_in_the_figure_on_a_linear_schedule() -> None:
    """The initial level lasts one step there, and is not the median of the first tenth."""
    steps = [Step(step=i, lr=1e-5 + 0.001 * i, loss=5.0 if i == 0 else 1.0) for i in range(100)]
    assert curve_axes(sweep_figure(steps)).get_ylim()[1] > 5


def test_one_outlier_below_does_not_set_the_axis() -> None:
    """It may pull the smoothed curve, but not the axis down to itself."""
    steps = records(u_curve)
    steps[50] = dataclasses.replace(steps[50], loss=-40.0)
    bottom, top = curve_axes(sweep_figure(steps)).get_ylim()
    assert bottom > -30
    assert top < 8


def test_the_stop_is_marked_at_its_step_with_its_reason() -> None:
    """The earliest stop of the repeats, at the learning rate of its step."""
    steps = records(u_curve)[:90] + records(u_curve, repeat=1)
    figure = sweep_figure(steps, stops=[Stop(reason=StopReason.DIVERGED, step=89), END])
    (mark,) = with_gid(figure, "stop")
    assert mark.get_xdata()[0] == steps[89].lr
    assert "diverged at step 89" in texts(figure)


def test_a_non_finite_stop_names_its_rank() -> None:
    """The point itself cannot be drawn; its step and its rank can."""
    steps = records(u_curve)[:81]
    steps[80] = dataclasses.replace(steps[80], loss=math.nan)
    figure = sweep_figure(steps, stops=[Stop(reason=StopReason.NON_FINITE, step=80, ranks=(1,))])
    assert "non_finite at step 80 on rank 1" in texts(figure)
    assert curve_axes(figure).get_xlim()[1] > steps[80].lr
    assert len(line(figure, "raw loss").get_xdata()) == 80


def test_repeats_are_a_band_around_their_mean() -> None:
    """Minimum, maximum and mean of each step."""
    steps = [
        Step(repeat=repeat, step=i, lr=10.0 ** (i - 6), loss=3.0 - i / 10 + repeat)
        for repeat in range(3)
        for i in range(6)
    ]
    figure = sweep_figure(steps)
    (band,) = curve_axes(figure).collections
    assert band.get_label() == "range over 3 repeats"
    vertices = np.asarray(band.get_paths()[0].vertices)
    at_first_step = vertices[np.isclose(vertices[:, 0], 1e-6), 1]
    assert (at_first_step.min(), at_first_step.max()) == (3.0, 5.0)
    mean = line(figure, "mean raw loss").get_ydata()
    assert list(mean) == pytest.approx([4.0, 3.9, 3.8, 3.7, 3.6, 3.5])


def test_a_repeat_that_stopped_early_stays_in_the_band() -> None:
    """Otherwise the band would jump down to the survivors where a repeat diverged."""
    steps = [Step(step=0, lr=1e-3, loss=1.0), Step(step=1, lr=1e-2, loss=9.0)]
    steps += [Step(repeat=1, step=i, lr=10.0 ** (i - 3), loss=2.0) for i in range(3)]
    lr, low, high = repeat_range(steps)
    assert lr.tolist() == [1e-3, 1e-2, 1e-1]
    assert low.tolist() == [1.0, 2.0, 2.0]
    assert high.tolist() == [2.0, 9.0, 9.0]


def test_only_the_last_pass_is_the_curve() -> None:
    """Auto-range sweeps again with other ends; what it tried before is background."""
    before = [*records(lambda lr: 7.0)[:40], *records(lambda lr: 7.0, repeat=1)[:40]]
    steps = before + records(u_curve, sweep_pass=1)
    figure = sweep_figure(steps)
    assert len(line(figure, "raw loss").get_xdata()) == 100
    assert len(line(figure, "earlier passes").get_xdata()) == 40
    assert curve_axes(figure).get_ylim()[1] < 4


def test_the_pass_that_counts_is_the_curve() -> None:
    """An extension that failed is background, like the passes before it, and its stop is not the curve's."""
    steps = records(u_curve) + records(lambda lr: 7.0, sweep_pass=1)[:30]
    stops = (END, Stop(reason=StopReason.INTERRUPTED, step=29, sweep_pass=1))
    test = RangeTestResult(
        steps=tuple(steps), stops=stops, suggestion=SUGGESTION, world_size=2, global_batch_size=64, curve_pass=0
    )
    figure = lr_sweep_figure(test, beta=0.9, title="t")
    assert len(line(figure, "raw loss").get_xdata()) == 100
    assert len(line(figure, "other passes").get_xdata()) == 30
    assert "end_of_ladder at step 99" in texts(figure)


def test_skipped_steps_are_no_points() -> None:
    """An overflowed fp16 step is tried again with the same LR."""
    steps = [*records(u_curve), Step(step=50, lr=1e-3, loss=1e9, skipped=True)]
    assert len(line(sweep_figure(steps), "raw loss").get_xdata()) == 100
    assert repeat_range(steps)[2].max() < 1e9


def test_a_capped_divergence_is_named_in_the_legend() -> None:
    """The smoothed curve levels off where the loss does not: that is what the rules read."""
    assert "smoothed loss, divergence capped" in texts(sweep_figure(records(u_curve)))
    assert "smoothed loss" in texts(sweep_figure(records(lambda lr: min(u_curve(lr), 2.3))))


def test_a_sweep_without_finite_loss_says_so() -> None:
    """Empty axes look like a broken figure."""
    assert "no finite loss to draw" in texts(sweep_figure([Step(step=0, lr=1e-7, loss=math.inf)]))
