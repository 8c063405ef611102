"""The panel of a sweep's figure that shows its curve: losses over learning rate, and where the sweep stopped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lrrunner.core.curve import Curve, pooled
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.records import RangeTestResult, Step, Stop, StopReason
from lrrunner.reporting.figure_style import CURVE, EARLIER, MUTED, NORMAL, RAW, STOPPED

MAX_STOP_CHARACTERS = 36


def draw_losses(axes: Axes, test: RangeTestResult, curve: Curve | None) -> None:
    """Draw other passes, raw losses, their range over repeats, and the smoothed curve."""
    steps = test.curve_steps
    lr, low, high = repeat_range(steps)
    if not len(lr):
        _draw_placeholder(axes)
        return
    axes.set_ylim(*loss_limits(curve, low=low, high=high))
    _draw_other_passes(axes, test, curve_pass=steps[0].sweep_pass)
    num_repeats = len({step.repeat for step in steps})
    if num_repeats > 1:
        label = f"range over {num_repeats} repeats"
        axes.fill_between(lr, low, high, color=CURVE, alpha=0.15, lw=0, label=label)
    lr, loss, *_ = pooled(steps)
    label = "mean raw loss" if num_repeats > 1 else "raw loss"
    axes.plot(lr, loss, color=RAW, lw=1.1, marker="o", markersize=_marker_size(len(lr)), label=label)
    if curve is not None:
        is_capped = loss.max() > axes.get_ylim()[1]
        label = "smoothed loss, divergence capped" if is_capped else "smoothed loss"
        axes.plot(curve.lr, curve.smoothed, color=CURVE, lw=2.4, label=label)


def draw_stop(axes: Axes, stop: Stop, steps: Sequence[Step]) -> None:
    """Mark where the sweep ended and why: rotated, right of the line, below a curve that has diverged."""
    lr = min(steps, key=lambda step: abs(step.step - stop.step)).lr
    colour = MUTED if stop.reason == StopReason.END_OF_SCHEDULE else STOPPED
    axes.axvline(lr, color=colour, lw=1.4, ls=(0, (2, 2)), zorder=3, gid="stop")
    label = axes.annotate(
        textwrap.shorten(str(stop), width=MAX_STOP_CHARACTERS, placeholder=" …"),  # it may name many ranks
        (lr, 0.03),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        rotation=90,
        va="bottom",
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
    )
    label.set(color=colour, size=NORMAL)


def loss_limits(curve: Curve | None, *, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    """Limits of the loss axis: they hold the descent of the curve and its noise, and cap a divergence.

    Args:
        curve: The curve, or None for fewer than two points.
        low: Lowest raw loss of each step, shape (T,). An outlier counts at most one descent below the curve.
        high: Highest raw loss of each step, shape (T,). Only the first counts, which is that of the initial weights.

    Returns:
        (bottom, top), in units of the loss.
    """
    first = float(high[0]) if len(high) else 0.0
    if curve is None:
        least = 0.1 * abs(first) or 1.0
        return first - least, first + least
    lowest = min(curve.level, float(curve.smoothed.min()))
    depth = max(curve.level - lowest, 4 * curve.noise)
    lowest = min(lowest, max(float(low.min()), lowest - depth))
    highest = max(curve.level, first)
    descent = highest - lowest
    least = 1e-3 * abs(curve.level) or 1.0  # keeps tick labels within six digits
    return lowest - max(0.1 * descent, least), highest + max(0.3 * descent, 4 * curve.noise, least)


def repeat_range(steps: Sequence[Step]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lowest and highest raw loss of each step over repeats.

    A repeat that stopped holds its last loss, as in ``pooled``, whose mean therefore stays within the range.

    Args:
        steps: Records of one pass.

    Returns:
        Learning rates, minima and maxima, each of shape (T,).
    """
    points = [step for step in steps if step.monitored_loss is not None and step.is_finite]
    lr_by_step = {point.step: point.lr for point in sorted(points, key=lambda point: point.step)}
    column = {step: i for i, step in enumerate(lr_by_step)}
    row = {repeat: i for i, repeat in enumerate(sorted({point.repeat for point in points}))}
    losses = np.full((len(row), len(column)), np.nan)
    for point in points:
        losses[row[point.repeat], column[point.step]] = point.monitored_loss
    for i in range(1, len(column)):
        losses[:, i] = np.where(np.isnan(losses[:, i]), losses[:, i - 1], losses[:, i])
    is_complete = np.isfinite(losses).all(axis=0)
    complete = losses[:, is_complete]
    lr = np.array(list(lr_by_step.values()))[is_complete]
    return lr, complete.min(axis=0, initial=np.inf), complete.max(axis=0, initial=-np.inf)


def _draw_other_passes(axes: Axes, test: RangeTestResult, *, curve_pass: int) -> None:
    others = sorted({step.sweep_pass for step in test.steps} - {curve_pass})
    label = "earlier passes" if not others or others[-1] < curve_pass else "other passes"
    for number in others:
        lr, loss, *_ = pooled(step for step in test.steps if step.sweep_pass == number)
        axes.plot(lr, loss, color=EARLIER, lw=1, label=label if number == others[0] else "")


def _draw_placeholder(axes: Axes) -> None:
    axes.set_yticks([])
    box = {"facecolor": "white", "lw": 0}
    text = axes.text(0.5, 0.5, "no finite loss to draw", transform=axes.transAxes, ha="center", bbox=box, zorder=5)
    text.set(color=MUTED, size=NORMAL)


def _marker_size(num_points: int) -> float:
    """Dots in points; a dense curve has none."""
    if num_points < 20:
        return 5.0
    return 2.5 if num_points <= 200 else 0.0
