"""From a curve to a learning rate: one function per rule, a registry by name, and one verdict for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.curve import Curve, curve_from_steps
from lrrunner.core.landmarks import SIGNIFICANCE, blow_up_index, fall_logs, falls, landmarks, redrawn_curves
from lrrunner.core.lr_estimate import INTERVAL_ERRORS, OptimizerClass, estimate, for_training
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.core.regret import expected_regret
from lrrunner.records import Step, Stop, StopReason, Suggestion, Training, Verdict

MIN_POINTS = 10
"""Fewest finite points a slope can be read from: two kernel widths of the smoother."""

NOISY_SHARE = 0.1
"""Noise above this share of the initial loss hides whether the curve responds at all."""

FLAT_DECADES = 3.0
"""A blow-up that far above the first LR comes out of a flat curve, not of one that rises from its start."""

MAX_SPREAD_DECADES = 2.0
"""A fall that moves further than this when the noise is redrawn has not been located."""

NON_FINITE_START_STEPS = 3

DEFAULT_TRAINING = Training()

Rule = Callable[[Curve], float | None]

RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a suggestion rule under its function's name."""
    RULES[function.__name__] = function
    return function


@rule
def auto(curve: Curve) -> float | None:
    """The mean of what five landmarks say about the best LR, each weighted by its precision.

    Where half, nine tenths and all of the loss's fall is over; where the raw loss, as a median of three, has lost three
    quarters of its fall again, clear of the noise; where the gradient's norm, as a median of three, stands half above
    its initial level. :mod:`lrrunner.core.lr_estimate` says how far below each the best LR lies, and how surely.
    """
    found = estimate(landmarks(curve))
    return None if found is None else float(10**found.log_lr)


@rule
def steepest(curve: Curve) -> float | None:
    """The LR of the most negative d loss / d log lr, left of the minimum.

    References:
        Smith 2018, arXiv:1803.09820; against log LR, since the slope against LR itself always favours the left end.
    """
    index = int(np.argmin(curve.slope[: curve.minimum_index + 1]))
    return float(curve.lr[index]) if curve.slope[index] < 0 else None


@rule
def minimum(curve: Curve) -> float | None:
    """A tenth of the LR of the lowest loss.

    References:
        Gugger 2018, "How Do You Find A Good Learning Rate": one order of magnitude before the minimum.
    """
    return float(curve.lr[curve.minimum_index]) / 10


@rule
def valley(curve: Curve) -> float | None:
    """The middle of the longest strictly decreasing subsequence of the smoothed loss, once it has begun to fall.

    References:
        The default of fastai 2.8, here on the zero-phase smoothed loss, from a twentieth of the fall on (fastai drops
        the first tenth of the points instead), and with the subsequence's own ends.
    """
    begun = int(np.flatnonzero(curve.smoothed[: curve.minimum_index + 1] >= curve.level - curve.fall / 20)[-1:].sum())
    indices = longest_decreasing_subsequence(curve.smoothed[begun:])
    return float(curve.lr[begun + (indices[0] + indices[-1]) // 2]) if len(indices) > 1 else None


@rule
def slide(curve: Curve) -> float | None:
    """The left end of a window that slides down from the right until the slopes at its two ends agree.

    The window is 1.2 decades wide and starts where the loss is back at the initial level. The slopes agree when they
    differ by less than a thirtieth of the fall a decade, or by less than two standard errors of a slope.

    References:
        ESRI's interval slide rule as in fastai 2.8, whose constants (15 points, 0.005 a point) are for 100 points over
        8 decades and a fall of about 2; here they scale with the range and the loss.
    """
    x = np.log10(curve.lr)
    slope_error = curve.noise * np.linalg.norm(curve.smoother.slope, axis=1)
    threshold = np.maximum(curve.fall / 30, 2 * slope_error)
    left_of = np.searchsorted(x, x - 1.2 + 1e-9, side="right") - 1
    recovered = np.flatnonzero(curve.smoothed[curve.minimum_index :] >= curve.level)
    last = curve.minimum_index + int(recovered[0]) if len(recovered) else len(x) - 1
    suggestion = None
    for right in range(last, -1, -1):
        left = left_of[right]
        if left < 0 or abs(curve.slope[right] - curve.slope[left]) <= threshold[left]:
            break
        suggestion = float(curve.lr[left])
    return suggestion


@rule
def largest_drop(curve: Curve) -> float | None:
    """The LR of the largest decrease of the causal EMA between two consecutive steps.

    Defined on the causal EMA, with its lag, as in the TF2 article "How to Find a Descent Learning Rate". The first
    steps, whose average is over few losses, and a rough tail can win: kept for comparison.
    """
    drops = np.diff(curve.causal)
    index = int(np.argmin(drops))
    return float(curve.lr[index + 1]) if drops[index] < 0 else None


def longest_decreasing_subsequence(values: FloatArray) -> list[int]:
    """Indices of a longest strictly decreasing subsequence (patience sorting, O(T log T)).

    >>> longest_decreasing_subsequence(np.array([9.0, 1.0, 8.0, 2.0, 7.0]))
    [0, 2, 4]
    """
    tail_values: list[float] = []
    tails: list[int] = []
    previous = [-1] * len(values)
    for i, value in enumerate(-values):
        position = int(np.searchsorted(tail_values, value))
        previous[i] = tails[position - 1] if position else -1
        tail_values[position : position + 1] = [float(value)]
        tails[position : position + 1] = [i]
    indices, i = [], tails[-1]
    while i >= 0:
        indices.append(i)
        i = previous[i]
    return indices[::-1]


def suggest(
    steps: Sequence[Step],
    stops: Sequence[Stop],
    *,
    method: str = "auto",
    beta: float = 0.9,
    optimizer: OptimizerClass | None = None,
    training: Training = DEFAULT_TRAINING,
) -> Suggestion:
    """Read a learning rate off a sweep, with an interval and a verdict, or the reason why there is none.

    A pure function of reduced records, so every rank computes the same suggestion.

    Args:
        steps: Records of every repeat, the last pass counts.
        stops: Where each repeat ended.
        method: Name of a rule in ``RULES``.
        beta: Memory of the causal EMA, for the rules that are defined on it.
        optimizer: Class of the optimizer, which `auto` takes for one more observation; None if it is not known.
        training: The training that the LR of `auto` is for.

    Raises:
        ValueError: unknown method.
    """
    if method not in RULES:
        raise ValueError(f"suggestion.method must be one of {', '.join(RULES)}; got {method}")
    curve = curve_from_steps(steps, beta=beta)
    finding = _examine(curve, stops, knows_optimizer=optimizer is not None)
    if not finding.has_lr and any(stop.reason == StopReason.INTERRUPTED for stop in stops):
        finding = finding._replace(reason="the sweep was interrupted before the curve was complete; run it again")
    if curve is None or not finding.has_lr:
        return Suggestion(
            lr=None,
            method=method,
            verdict=finding.verdict,
            reason=finding.reason,
            candidates=dict.fromkeys(RULES),
        )
    found = estimate(landmarks(curve), optimizer=optimizer)
    found = None if found is None else for_training(found, training)
    is_fall = finding.verdict != Verdict.NO_DESCENT  # else only `auto` has something to read, where the loss blows up
    candidates = {name: find(curve) if is_fall else None for name, find in RULES.items()}
    candidates[auto.__name__] = None if found is None else float(10**found.log_lr)
    lr = candidates[method]
    if lr is None or found is None:
        reason = f"the rule {method} found no point; use suggestion.method=auto"
        return Suggestion(lr=None, method=method, verdict=finding.verdict, reason=reason, candidates=candidates)
    factor = float(10 ** (INTERVAL_ERRORS * found.error))
    return Suggestion(
        lr=lr,
        method=method,
        verdict=finding.verdict,
        reason=finding.reason,
        interval=(lr / factor, lr * factor),
        expected_regret=expected_regret(float(np.hypot(found.error, np.log10(lr) - found.log_lr))),
        candidates=candidates,
        evidence={name: {"lr": float(10**at), "weight": found.weights[name]} for name, at in found.log_lrs.items()},
    )


class _Finding(NamedTuple):
    verdict: Verdict
    has_lr: bool
    reason: str


def _examine(curve: Curve | None, stops: Sequence[Stop], *, knows_optimizer: bool) -> _Finding:
    """The verdict on a curve, before any rule reads it."""
    non_finite = [stop for stop in stops if stop.reason == StopReason.NON_FINITE]
    first_bad = min((stop.step for stop in non_finite), default=None)
    if first_bad is not None and first_bad < NON_FINITE_START_STEPS:
        reason = f"the loss was not finite at step {first_bad}; check the data and the loss, or lower sweep.start_lr"
        return _Finding(Verdict.NON_FINITE_AT_START, False, reason)
    if curve is None or len(curve.lr) < MIN_POINTS:
        reason = f"fewer than {MIN_POINTS} finite points; lower sweep.start_lr or raise sweep.num_steps"
        return _Finding(Verdict.TOO_FEW_POINTS, False, reason)
    blew_up = any(stop.reason in (StopReason.DIVERGED, StopReason.NON_FINITE) for stop in stops)
    lowest = curve.minimum_index
    rises = blew_up or _rises(curve, lowest)
    if not falls(curve):
        return _without_descent(curve, rises, blew_up, knows_optimizer=knows_optimizer)
    spread = _spread_decades(curve)
    if spread > MAX_SPREAD_DECADES and blow_up_index(curve) is None:
        reason = f"noise moves the suggestion over {spread:.1f} decades; raise sweep.repeats or data.global_batch_size"
        return _Finding(Verdict.TOO_NOISY, False, reason)
    if rises:
        return _Finding(Verdict.OK, True, "the loss falls, and diverges at a larger learning rate")
    end = curve.lr[-1]
    if _still_falls(curve):
        reason = f"the loss still falls at the last learning rate {end:.1e}; raise sweep.end_lr"
        return _Finding(Verdict.NO_DIVERGENCE, False, reason)
    reason = f"the loss stops falling but does not diverge up to {end:.1e}; raise sweep.end_lr to see where it does"
    return _Finding(Verdict.NO_DIVERGENCE, True, reason)


def _without_descent(curve: Curve, rises: bool, blew_up: bool, *, knows_optimizer: bool) -> _Finding:
    """Without a fall, a divergence supports an LR, and so does a mere rise together with the kind of optimizer."""
    index = blow_up_index(curve)
    if (
        (blew_up or (rises and knows_optimizer))
        and index is not None
        and np.log10(curve.lr[index] / curve.lr[0]) >= FLAT_DECADES - 1e-9  # whatever the unit of the LR rounds to
        and curve.noise > 1e-6 * abs(curve.level)  # without noise, a fall that is not seen is not there
    ):
        reason = (
            f"no fall stands out from the noise before the loss blows up at {curve.lr[index]:.1e}: the learning rate "
            "only keeps its distance from there; raise sweep.num_steps or sweep.repeats, or try it with "
            "confirm.enabled=true"
        )
        return _Finding(Verdict.NO_DESCENT, True, reason)
    if rises:
        reason = (
            "the loss rises without having fallen; if it rises from the start, lower sweep.start_lr (sweep.end_lr with "
            "sweep.mode=linear), else raise sweep.num_steps, sweep.repeats or data.global_batch_size"
        )
        return _Finding(Verdict.NO_DESCENT, False, reason)
    if curve.noise > NOISY_SHARE * abs(curve.level):
        reason = "no fall stands out from the noise; raise sweep.repeats, sweep.num_steps or data.global_batch_size"
        return _Finding(Verdict.TOO_NOISY, False, reason)
    reason = (
        "the loss does not respond to the learning rate; raise sweep.end_lr, or check that gradients reach the model"
    )
    return _Finding(Verdict.FLAT, False, reason)


def _still_falls(curve: Curve) -> bool:
    """Whether the smoothed loss falls over the last half decade by more than noise and a fiftieth of the whole fall."""
    half_decade_back = min(int(np.searchsorted(curve.lr, curve.lr[-1] / 10**0.5)), len(curve.lr) - 2)
    drop = curve.smoothed[half_decade_back] - curve.smoothed[-1]
    error = np.hypot(curve.error[half_decade_back], curve.error[-1])
    return bool(drop > max(SIGNIFICANCE * error, 0.02 * curve.fall))


def _rises(curve: Curve, lowest: int) -> bool:
    """Whether the loss rises after its lowest point by more than noise and a fifth of the fall.

    Or above the initial level: what lies there is capped in the smoothed loss, but not in the causal EMA.
    """
    above_level = curve.causal[max(lowest, curve.num_start) :].max(initial=-np.inf) - curve.level
    if above_level > max(SIGNIFICANCE * curve.noise, 0.2 * curve.fall, 1e-6 * abs(curve.level)):
        return True
    highest = lowest + int(np.argmax(curve.smoothed[lowest:]))
    error = np.hypot(curve.error[lowest], curve.error[highest])
    rise = curve.smoothed[highest] - curve.smoothed[lowest]
    return bool(rise > max(SIGNIFICANCE * error, 0.2 * curve.fall, 1e-6 * abs(curve.level)))


def _spread_decades(curve: Curve) -> float:
    """Distance of the 10 % and 90 % quantiles of that landmark of the fall which redrawn noise moves least."""
    redrawn = np.array(list(fall_logs(curve, redrawn_curves(curve)).values()))
    low, high = np.quantile(redrawn, [0.1, 0.9], axis=1)
    return float((high - low).min())
