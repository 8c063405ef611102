"""From a curve to a learning rate: one function per rule, a registry by name, and one verdict for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.curve import Curve, curve_from_steps, noise_std
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.records import Step, Stop, StopReason, Suggestion, Verdict

MIN_POINTS = 10
"""Fewest finite points a slope can be read from: two kernel widths of the smoother."""

SIGNIFICANCE = 4.0
"""Standard errors that a fall or a rise must exceed: the extreme of a dozen independent windows of pure noise
exceeds four about once in a thousand sweeps."""

NOISY_SHARE = 0.1
"""Noise above this share of the initial loss hides whether the curve responds at all."""

FLAT_DECADES = 3.0
"""A blow-up that far above the first LR comes out of a flat curve, not of one that rises from its start."""

MAX_SPREAD_DECADES = 2.0
"""A landmark that moves further than this when the noise is redrawn has not been located."""

RULE_ERROR_DECADES = 0.4
"""Half the width of an interval without noise: with it, 48 of 57 intervals of `auto` on the development jobs contain an
LR whose regret is within 0.015 of the lowest (scripts/benchmarks/regret.md). For `auto`; other rules borrow it."""

BELOW_FALL = 4.0
BELOW_BLOW_UP = 8.0
BELOW_GRADIENT_RISE = 6.0
"""How far below its landmark the best LR of a training lies: from a grid on the development jobs, where each landmark
alone, with its own best divisor, loses 1.9 to 3.4 times as much as `auto` (`regret.py --landmarks`,
`--leave-one-out`; scripts/benchmarks/regret.md)."""

CLEAR_FALL = 10.0
"""A fall of so many standard deviations of the noise bounds the suggestion; the steepest point of a smaller one may be
an accident. From 3 to 10 the development jobs lose the same (`regret.py --landmarks`)."""

ABOVE_FALL = 2.0
"""No LR this much above the estimate from a clear fall is suggested: where the loss falls stands out more surely than
where it blows up, which may come decades later. Unbounded, `auto` loses 0.007 more (`regret.py --landmarks`)."""

GRADIENT_RISE = 1.5
"""A gradient norm this much above its initial level has left the region that the training starts in; 1.3 and 1.8 lose
0.006 and 0.004 more (`regret.py --landmarks`)."""

UNSEEN_DIVERGENCE = 5.0
"""A divergence beyond the range is taken to lie this far above the minimum; where one is seen on the development jobs,
it lies 2.5 to 8.5 times above it (quartiles of 51 sweeps; `regret.py --landmarks`)."""

LOST_SHARE = 0.75
"""A loss that has lost this share of its fall again has blown up, whether or not it comes back; a half and the whole
are as good to 0.002, a third is 0.006 worse (`regret.py --landmarks`)."""

CLEAR_OF_NOISE = 3.0
"""Standard deviations above its limit at which the median of three losses is no accident."""

GRADIENT_NOISE = 2.0
"""The same for logarithms of gradient norms: one landmark of three may be an accident now and then. 1.5 is as good, 3
is 0.002 worse (`regret.py --landmarks`)."""

NUM_REDRAWS = 200
NON_FINITE_START_STEPS = 3

Rule = Callable[[Curve], float | None]

RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a suggestion rule under its function's name."""
    RULES[function.__name__] = function
    return function


@rule
def auto(curve: Curve) -> float | None:
    """The median of three estimates, each from another landmark of the sweep, so that one of them may be misled.

    Where the loss falls: a quarter of the geometric mean of its steepest point and its minimum (of its start, while no
    fall stands out from the noise); at most twice that is suggested if the fall is clear. Where the loss blows up: an
    eighth of the LR at which the raw loss, as a median of three, has first lost three quarters of its fall again, clear
    of the noise. Where the gradient grows: a sixth of the LR at which its norm, as a median of three, first stands half
    above its initial level.
    """
    logs = _auto_log_lrs(curve, curve.loss[:, None])
    return float(10 ** logs[0])


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


def suggest(steps: Sequence[Step], stops: Sequence[Stop], *, method: str = "auto", beta: float = 0.9) -> Suggestion:
    """Read a learning rate off a sweep, with an interval and a verdict, or the reason why there is none.

    A pure function of reduced records, so every rank computes the same suggestion.

    Args:
        steps: Records of every repeat, the last pass counts.
        stops: Where each repeat ended.
        method: Name of a rule in ``RULES``.
        beta: Memory of the causal EMA, for the rules that are defined on it.

    Raises:
        ValueError: unknown method.
    """
    if method not in RULES:
        raise ValueError(f"suggestion.method must be one of {', '.join(RULES)}; got {method}")
    curve = curve_from_steps(steps, beta=beta)
    finding = _examine(curve, stops)
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
    falls = finding.verdict != Verdict.NO_DESCENT  # else only `auto` has something to read, where the loss blows up
    candidates = {name: find(curve) if falls or find is auto else None for name, find in RULES.items()}
    lr = candidates[method]
    if lr is None:
        reason = f"the rule {method} found no point; use suggestion.method=auto"
        return Suggestion(lr=None, method=method, verdict=finding.verdict, reason=reason, candidates=candidates)
    return Suggestion(
        lr=lr,
        method=method,
        verdict=finding.verdict,
        reason=finding.reason,
        interval=_interval(curve, lr),
        candidates=candidates,
    )


class _Finding(NamedTuple):
    verdict: Verdict
    has_lr: bool
    reason: str


def _examine(curve: Curve | None, stops: Sequence[Stop]) -> _Finding:
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
    if not _falls(curve):
        return _without_descent(curve, rises, blew_up)
    spread = float(np.ptp(_interval_logs(curve)))
    if spread > MAX_SPREAD_DECADES:
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


def _without_descent(curve: Curve, rises: bool, blew_up: bool) -> _Finding:
    index = _blow_up_index(curve)
    if (
        blew_up
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


def _falls(curve: Curve) -> bool:
    """Whether the loss falls, after its start, by more than noise and rounding."""
    lowest = curve.minimum_index
    error = np.hypot(curve.error[lowest], 1.25 * curve.noise / np.sqrt(curve.num_start))
    return lowest >= curve.num_start and curve.fall > max(SIGNIFICANCE * error, 1e-6 * abs(curve.level))


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


def landmarks(curve: Curve) -> dict[str, float]:
    """The LRs that `auto` reads, by name: fall, blow_up (a guess where it is not seen), gradient_rise (if it is)."""
    logs = {
        "fall": _fall_logs(curve, curve.smoothed[:, None])[0],
        "blow_up": _blow_up_log(curve),
        "gradient_rise": _gradient_rise_log(curve),
    }
    return {name: float(10**log) for name, log in logs.items() if not np.isnan(log)}


def _auto_log_lrs(curve: Curve, losses: FloatArray) -> FloatArray:
    """log10 of `auto` for several draws of the losses, shape (T, number of draws); shape (number of draws,)."""
    fall = _fall_logs(curve, curve.smoother.value @ losses) - np.log10(BELOW_FALL)
    falls = _falls(curve)
    if not falls:
        fall = np.full_like(fall, np.log10(curve.lr[0]))
    blow_up = _blow_up_log(curve) - np.log10(BELOW_BLOW_UP)
    gradient = _gradient_rise_log(curve) - np.log10(BELOW_GRADIENT_RISE)
    estimates = np.stack([fall, np.full_like(fall, blow_up), np.full_like(fall, gradient)])
    middle = np.asarray(np.nanmedian(estimates, axis=0))
    is_clear = falls and curve.fall > CLEAR_FALL * curve.noise
    return np.minimum(middle, fall + np.log10(ABOVE_FALL)) if is_clear else middle


def _fall_logs(curve: Curve, smoothed: FloatArray) -> FloatArray:
    """log10 of the geometric mean of steepest point and minimum of each column of ``smoothed``, before the blow-up."""
    x, indices = np.log10(curve.lr), np.arange(len(curve.lr))[:, None]
    blow_up = _blow_up_index(curve)
    end = len(x) if blow_up is None else max(blow_up, curve.num_start + 1)
    lowest = smoothed[:end].argmin(axis=0)
    slopes = np.where(indices <= lowest, np.gradient(smoothed, x, axis=0), np.inf)
    return np.asarray((x[lowest] + x[slopes.argmin(axis=0)]) / 2)


def _blow_up_log(curve: Curve) -> float:
    """log10 of the LR where the loss blows up; a guess when it is not seen."""
    index = _blow_up_index(curve)
    return float(np.log10(curve.lr[curve.minimum_index] * UNSEEN_DIVERGENCE if index is None else curve.lr[index]))


def _blow_up_index(curve: Curve) -> int | None:
    """First index at which the raw loss, as a median of three, has clearly lost most of the fall so far again."""
    level = max(curve.level, float(np.median(curve.raw[: len(curve.raw) // 3 + 1])))  # whichever start was calmer
    medians = _medians_of_three(curve.raw)
    after_start = np.where(np.arange(len(medians)) < curve.num_start, level, medians)
    fall = level - np.minimum.accumulate(np.minimum(after_start, level))
    limit = level - (1 - LOST_SHARE) * fall + max(CLEAR_OF_NOISE * curve.noise, 1e-6 * abs(level))
    return _first_above(medians, limit, start=curve.num_start)


def _gradient_rise_log(curve: Curve) -> float:
    """log10 of the LR where the gradient norm first stands clear of its initial level; NaN when it is not seen."""
    norms = np.log(np.maximum(curve.grad_norm, np.finfo(float).tiny))
    start = norms[: max(curve.num_start, len(norms) // 4)]
    clear = np.median(start) + max(np.log(GRADIENT_RISE), GRADIENT_NOISE * noise_std(start))
    index = _first_above(_medians_of_three(norms), clear, start=curve.num_start)
    return np.nan if index is None else float(np.log10(curve.lr[index]))


def _medians_of_three(values: FloatArray) -> FloatArray:
    """Each value's median with its two neighbours."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0))


def _first_above(values: FloatArray, limit: FloatArray | float, *, start: int) -> int | None:
    """First index from ``start`` on at which a value exceeds the limit."""
    found = np.flatnonzero((values > limit)[start:])
    return start + int(found[0]) if len(found) else None


def _interval(curve: Curve, lr: float) -> tuple[float, float]:
    """Two independent errors, added in squares: of any rule on a perfect curve, and of this curve's noise."""
    below, above = _interval_logs(curve)
    low = np.log10(lr) - np.hypot(RULE_ERROR_DECADES, below)
    high = np.log10(lr) + np.hypot(RULE_ERROR_DECADES, above)
    return float(10**low), float(10**high)


def _interval_logs(curve: Curve) -> FloatArray:
    """10 % and 90 % quantiles, in decades from the rule's own value, of `auto` under redrawn noise.

    A wild bootstrap: residuals keep their size and place and get random signs, so noise that changes along the curve is
    redrawn as it is.

    References:
        Wu 1986, doi:10.1214/aos/1176350142.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(curve.lr), NUM_REDRAWS))
    redrawn = curve.smoothed[:, None] + (curve.loss - curve.smoothed)[:, None] * signs
    low, middle, high = np.quantile(_auto_log_lrs(curve, redrawn), [0.1, 0.5, 0.9])
    return np.array([low - middle, high - middle])
