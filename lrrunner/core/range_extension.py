"""Whether a sweep's range was wrong, which range to sweep next, and which of several passes the curve comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.curve import Curve, curve_from_steps, noise_std
from lrrunner.core.landmarks import SIGNIFICANCE
from lrrunner.records import Step, Stop, StopReason, Suggestion, Verdict

MAX_PASSES = 3
"""The first pass, and at most two over an extended range."""

UP, UP_FLAT, DOWN = 1e2, 1e4, 1e3
"""A loss that falls at the end of the range diverges within two decades, one that is still flat within four: a hundred
steps go from useless to divergent in two to three. Three decades down, since a range that begins too high gives no
hint how far."""

UP_LINEAR = DOWN_LINEAR = 10.0
"""A linear sweep has nearly no steps at the low end of its range, so the whole range moves, and not far."""

HIGHEST_LR, LOWEST_LR = 1e4, 1e-12
"""Beyond these, float32 updates are absurd or vanish: what is flat up to there has another fault."""

START_SHARE = 0.1
"""Share of the fall that may happen in the first tenth of the range: less moves the landmarks of `auto` little."""

RISES_WITHIN = 100.0
"""A loss that stays flat over two decades and then rises has no descent to the left of them, as above."""

USUAL_LR = 1.0
"""A range that ends below may end below the LRs that train: at 1.0, nearly every training moves or diverges."""


EXPLODED_FALLS = 5.0
"""Multiple of the fall, and of the noise, that a loss must rise by at the start of a sweep to have exploded."""


class Extension(NamedTuple):
    """The range of the next pass, and why the last one was not enough."""

    start_lr: float
    end_lr: float
    reason: str


def extension(
    steps: Sequence[Step],
    stops: Sequence[Stop],
    suggestion: Suggestion,
    *,
    start_lr: float,
    end_lr: float,
    linear: bool,
    beta: float,
    highest_lr: float = HIGHEST_LR,
) -> Extension | None:
    """The range to sweep next, or None when the curve needs none or another range would not help.

    Args:
        steps: Records of one pass.
        stops: Where each of its repeats ended.
        suggestion: What its curve supports.
        start_lr: First LR of the pass.
        end_lr: Last LR of the pass.
        linear: Whether its LRs lie at equal distances instead of equal ratios.
        beta: Memory of the causal EMA in [0, 1).
    """
    if any(stop.reason == StopReason.INTERRUPTED for stop in stops):
        return None
    reasons = []
    low, high = start_lr, end_lr
    if (why := _begins_too_high(steps, stops, suggestion, linear=linear, beta=beta)) and start_lr > LOWEST_LR:
        reasons.append(why)
        low = max(LOWEST_LR, start_lr / (DOWN_LINEAR if linear else DOWN))
        high = end_lr / DOWN_LINEAR if linear else end_lr
    highest_lr = min(highest_lr, HIGHEST_LR)
    if suggestion.verdict in (Verdict.FLAT, Verdict.NO_DIVERGENCE) and end_lr < highest_lr:
        flat = suggestion.verdict == Verdict.FLAT
        reasons.append(f"the loss {'is flat' if flat else 'does not diverge'} up to {end_lr:.1e}")
        high = min(highest_lr, end_lr * (UP_LINEAR if linear else UP_FLAT if flat else UP))
    return Extension(low, high, " and ".join(reasons)) if reasons else None


def with_end_named(suggestion: Suggestion, stops: Sequence[Stop], *, end_lr: float) -> Suggestion:
    """The suggestion; where noise hides a loss that a low range may not move at all, its reason names that end, too.

    No range is swept again for noise: nothing tells the two causes apart.

    Args:
        suggestion: What the curve of one pass supports.
        stops: Where each of its repeats ended.
        end_lr: Last LR of the pass.
    """
    is_complete = all(stop.reason == StopReason.END_OF_SCHEDULE for stop in stops)
    if suggestion.verdict != Verdict.TOO_NOISY or end_lr >= USUAL_LR or not is_complete:
        return suggestion
    remark = f"sweep.end_lr={end_lr:.1e} may also be too low to move the loss: raise it"
    return dataclasses.replace(suggestion, reason=f"{suggestion.reason}; {remark}")


def range_below(stop: Stop, start_lr: float, end_lr: float) -> Extension:
    """A range that begins lower, to see whether the LR is why a value was not finite at a step."""
    what = "the gradient" if stop.in_gradient else "the loss"
    reason = f"{what} is not finite at step {stop.step}, though the loss has not moved"
    return Extension(max(LOWEST_LR, start_lr / DOWN), end_lr, reason)


def curve_pass(suggestions: Sequence[Suggestion], *, interrupted: bool) -> int:
    """The pass that gives the curve: one with an LR, not interrupted, up to a divergence; the last of several as good.

    Args:
        suggestions: What each pass supports, in order.
        interrupted: Whether a signal stopped the last one.

    Returns:
        Its index.
    """

    completeness: dict[Verdict | None, int] = {Verdict.OK: 2, Verdict.NO_DIVERGENCE: 1}

    def rank(number: int) -> tuple[bool, bool, int, int]:
        suggestion = suggestions[number]
        complete = not interrupted or number < len(suggestions) - 1
        return suggestion.lr is not None, complete, completeness.get(suggestion.verdict, 0), number

    return max(range(len(suggestions)), key=rank)


def _begins_too_high(
    steps: Sequence[Step], stops: Sequence[Stop], suggestion: Suggestion, *, linear: bool, beta: float
) -> str:
    """Why the sweep should start lower; empty if it need not."""
    first_bad = min((stop.step for stop in stops if stop.reason == StopReason.NON_FINITE), default=None)
    blew_up = any(stop.reason in (StopReason.NON_FINITE, StopReason.DIVERGED) for stop in stops)
    if suggestion.verdict == Verdict.NON_FINITE_AT_START:  # at step 0, before any update, it is not the LR's fault
        return f"the loss is not finite from step {first_bad} on" if first_bad else ""
    if suggestion.verdict == Verdict.TOO_FEW_POINTS:
        return "the loss diverges within the first steps" if blew_up else ""
    curve = curve_from_steps(steps, beta=beta)
    if curve is None:
        return ""
    if suggestion.verdict == Verdict.NO_DESCENT and _rises_from_the_start(curve, linear=linear):
        return "the loss rises from the start"
    if not linear and _never_below_its_first(curve):
        return "no loss is below the first one"
    if not linear and _explodes_at_the_start(curve):
        return "the loss explodes at the first learning rates"
    if suggestion.verdict in (Verdict.OK, Verdict.NO_DIVERGENCE) and not linear and _falls_from_the_start(curve):
        return f"the loss falls from the first learning rate {curve.lr[0]:.1e} on"
    return ""


def _never_below_its_first(curve: Curve) -> bool:
    """Whether the loss of the initial weights is the lowest of all, whatever the verdict.

    A first update that explodes, and settles far above it, makes the level, the noise and even the fall of the curve.
    A flat and noisy curve has its lowest loss there once in a hundred times.
    """
    return bool(curve.raw[1:].min() > curve.raw[0] + 1e-6 * abs(curve.raw[0]))


def _explodes_at_the_start(curve: Curve) -> bool:
    """Whether the loss, as a median of three, soon stands far above the first one, whatever it does afterwards.

    Far: several times what the loss ever falls below the first one, and far beyond the noise of the second half.
    """
    soon = curve.raw[1 : max(curve.num_start, 4)]
    medians = [float(np.median(soon[i : i + 3])) for i in range(len(soon) - 2)]
    rise, fall = max(medians, default=-np.inf) - curve.raw[0], curve.raw[0] - curve.raw.min()
    late = curve.raw[len(curve.raw) // 2 :]
    return bool(rise > EXPLODED_FALLS * max(fall, noise_std(late), 1e-6 * abs(curve.raw[0])))


def _rises_from_the_start(curve: Curve, *, linear: bool) -> bool:
    """Whether the causal loss leaves its initial level for good within two decades, or a tenth of a linear sweep."""
    level = curve.level + max(SIGNIFICANCE * curve.noise, 1e-6 * abs(curve.level))
    below = np.flatnonzero(curve.causal <= level)
    limit = curve.lr[len(curve.lr) // 10] if linear else RISES_WITHIN * curve.lr[0]
    return bool(len(below) == 0 or curve.lr[below[-1]] < limit)


def _falls_from_the_start(curve: Curve) -> bool:
    """Whether the first tenth of the range, which should be flat, holds a share of the fall that is no noise."""
    end = min(curve.num_start, len(curve.lr) - 1)
    drop = curve.smoothed[0] - curve.smoothed[end]
    error = np.hypot(curve.error[0], curve.error[end])
    return bool(drop > max(SIGNIFICANCE * error, START_SHARE * (curve.smoothed[0] - curve.smoothed.min())))
