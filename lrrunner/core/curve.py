"""From the records of a sweep to the one curve that the suggestion rules read."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lrrunner.core.lr_schedules import FloatArray
from lrrunner.core.smoothing import LocalLinear, ema, local_linear
from lrrunner.records import Step

BANDWIDTH_DECADES = 0.2
"""Kernel width of the zero-phase smoother: about 5 of the 12 points that 100 steps put on one decade."""

MAX_POINTS = 600
"""Longer sweeps are averaged in neighbouring groups first: the smoother's matrices grow with the square."""

MAD_TO_STD = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A sweep as a function of the learning rate, repeats pooled, divergence winsorised.

    Attributes:
        lr: Learning rates, shape (T,), strictly increasing.
        raw: Pooled raw losses, shape (T,).
        loss: The same, capped at the initial level plus three standard deviations of the noise.
        smoothed: Zero-phase smoothed ``loss``, shape (T,).
        slope: d smoothed / d log10 lr, shape (T,).
        causal: Causal bias-corrected EMA of the uncapped pooled losses, shape (T,).
        grad_norm: Mean gradient norm over repeats, shape (T,); NaN where it was not recorded.
        level: Loss at the start: median over the first tenth of the log LR range.
        noise: Standard deviation of ``loss`` around its trend.
        error: Standard error of ``smoothed``, shape (T,).
        smoother: The linear maps that give ``smoothed`` and ``slope``.
        steps_per_decade: Steps that the sweep takes for one decade of the LR, shape (T,).
    """

    lr: FloatArray
    raw: FloatArray
    loss: FloatArray
    smoothed: FloatArray
    slope: FloatArray
    causal: FloatArray
    grad_norm: FloatArray
    level: float
    noise: float
    error: FloatArray
    smoother: LocalLinear
    steps_per_decade: FloatArray

    @property
    def num_start(self) -> int:
        """How many points make up the start of the curve."""
        return num_start_points(self.lr)

    @property
    def minimum_index(self) -> int:
        """Where the smoothed loss is lowest."""
        return int(np.argmin(self.smoothed))

    @property
    def fall(self) -> float:
        """From the initial level down to the lowest smoothed loss."""
        return float(self.level - self.smoothed.min())


def usable_points(steps: Iterable[Step]) -> list[Step]:
    """Points of the last pass's curve: steps applied and monitored, before the first non-finite loss.

    A repeat that goes non-finite ends the curve for all: what the others still reach is beyond a proven limit.
    """
    steps = [step for step in steps if not step.skipped]
    last_pass = max((step.sweep_pass for step in steps), default=0)
    steps = [step for step in steps if step.sweep_pass == last_pass]
    limit = min((step.step for step in steps if not step.is_finite), default=None)
    return [step for step in steps if step.is_monitored and (limit is None or step.step < limit)]


class Pooled(NamedTuple):
    """The repeats of a sweep as one: four arrays of shape (T,)."""

    lr: FloatArray
    loss: FloatArray
    grad_norm: FloatArray
    step: FloatArray


def pooled(steps: Iterable[Step]) -> Pooled:
    """Mean monitored raw loss and gradient norm by step over the repeats of the last pass, usable points only.

    A repeat that stopped early holds its last values for the steps the others still reached: it diverged there.
    """
    usable = usable_points(steps)
    if not usable:
        return Pooled(*[np.array([])] * 4)
    lr_by_step = {step.step: step.lr for step in sorted(usable, key=lambda step: step.step)}
    by_repeat = itertools.groupby(sorted(usable, key=lambda s: (s.repeat, s.step)), key=lambda s: s.repeat)
    repeats = []
    for _, group in by_repeat:
        by_step = {step.step: (_monitored_loss(step), step.grad_norm) for step in group}
        column, last = [], (np.nan, np.nan)
        for number in lr_by_step:
            last = by_step.get(number, last)
            column.append(last)
        repeats.append(column)
    values = np.array(repeats)
    keep = np.isfinite(values[:, :, 0]).all(axis=0)
    losses, grad_norms = values[:, keep].mean(axis=0).T
    numbers = np.array(list(lr_by_step), dtype=float)
    return Pooled(np.array(list(lr_by_step.values()))[keep], losses, grad_norms, numbers[keep])


def _monitored_loss(step: Step) -> float:
    assert step.monitored_loss is not None, "no point of the curve"
    return step.monitored_loss


def pooled_steps(steps: Iterable[Step], *, beta: float) -> list[Step]:
    """The repeats of the last pass as one curve: mean losses and gradient norm by step, EMA of the monitored mean.

    LRs and losses are those of :func:`pooled`; counts and times are those of the last repeat.
    """
    usable = list(usable_points(steps))
    lr, loss, *_ = pooled(usable)
    by_lr: dict[float, list[Step]] = {}
    for step in usable:
        by_lr.setdefault(step.lr, []).append(step)
    return [
        dataclasses.replace(
            by_lr[rate][-1],
            loss=mean if by_lr[rate][-1].val_loss is None else float(np.mean([step.loss for step in by_lr[rate]])),
            val_loss=None if by_lr[rate][-1].val_loss is None else mean,
            smoothed_loss=smoothed,
            grad_norm=float(np.mean([step.grad_norm for step in by_lr[rate]])),
        )
        for rate, mean, smoothed in zip(lr.tolist(), loss.tolist(), ema(loss, beta=beta).tolist(), strict=True)
    ]


def curve_from_steps(steps: Sequence[Step], *, beta: float) -> Curve | None:
    """The curve of a sweep, or None when fewer than two points are left.

    Args:
        steps: Records of one or several repeats.
        beta: Memory of the causal EMA in [0, 1).
    """
    points = pooled(steps)
    if len(points.lr) < 2:
        return None
    lr, loss, grad_norm, step = _thinned(points)
    causal = ema(loss, beta=beta)
    num_start = num_start_points(lr)
    level = float(np.median(loss[:num_start]))
    least = sampling_noise(steps)
    limit = level + 3 * max(noise_std(loss), least)
    noise = max(noise_std(loss[: max(num_start, _divergence_index(causal, limit))]), least)
    capped = np.minimum(loss, level + 3 * noise)
    x = np.log10(lr)
    smoother = local_linear(x, bandwidth=BANDWIDTH_DECADES)
    return Curve(
        lr=lr,
        raw=loss,
        loss=capped,
        smoothed=smoother.value @ capped,
        slope=smoother.slope @ capped,
        causal=causal,
        grad_norm=grad_norm,
        level=level,
        noise=noise,
        error=noise * np.linalg.norm(smoother.value, axis=1),
        smoother=smoother,
        steps_per_decade=np.gradient(step, x),
    )


def noise_std(losses: FloatArray) -> float:
    """Standard deviation of independent noise on a smooth trend, from first differences, robust to jumps.

    >>> noise_std(np.array([1.0, 1.0, 1.0]))
    0.0
    """
    if len(losses) < 2:
        return 0.0
    return float(MAD_TO_STD * np.median(np.abs(np.diff(losses))) / np.sqrt(2))


def sampling_noise(steps: Iterable[Step]) -> float:
    """Standard deviation of the monitored loss over the samples that might have been evaluated instead.

    Evaluations on always the same samples give a curve without noise, but other samples would give another one. A
    batch of the training shows how much samples differ: s * sqrt(batch / samples). 0 for a training loss, whose own
    noise shows.
    """
    usable = usable_points(steps)
    evaluated = [step for step in usable if step.val_loss is not None and step.repeat == usable[0].repeat]
    num_evaluated = evaluated[0].val_items if evaluated else None
    if not num_evaluated:
        return 0.0
    share = evaluated[0].num_items / num_evaluated
    return noise_std(np.array([step.loss for step in evaluated])) * math.sqrt(share)


def num_start_points(lr: FloatArray) -> int:
    """How many points lie in the first tenth of the log LR range, where the learning rate is too small to matter.

    A short sweep has at least three points there, as long as they lie in the first third of the range: one bad batch
    must not set the level of the curve. A linear sweep has its first point alone.
    """
    x = np.log(lr)
    within_tenth, within_third = (_num_within(x, (x[-1] - x[0]) / part) for part in (10, 3))
    return max(1, within_tenth, min(3, within_third))


def _num_within(x: FloatArray, distance: float) -> int:
    """Points up to ``distance`` after the first one; the boundary counts, whatever the unit of the LR rounds to."""
    return int(np.searchsorted(x, x[0] + distance + 1e-9, side="right"))


def _divergence_index(causal: FloatArray, level: float) -> int:
    """First index after the lowest causal loss at which it is above the initial level again."""
    lowest = int(np.argmin(causal))
    above = np.flatnonzero(causal[lowest:] > level)
    return lowest + int(above[0]) if len(above) else len(causal)


def _thinned(points: Pooled) -> Pooled:
    """At most MAX_POINTS points: geometric means of LRs, means of the rest, over neighbouring groups."""
    if len(points.lr) <= MAX_POINTS:
        return points
    groups = np.array_split(np.arange(len(points.lr)), MAX_POINTS)
    return Pooled(
        np.exp([np.log(points.lr[group]).mean() for group in groups]),
        np.array([points.loss[group].mean() for group in groups]),
        np.array([points.grad_norm[group].mean() for group in groups]),
        np.array([points.step[group].mean() for group in groups]),
    )
