"""Where a sweep does something that shows how high its LR is: five landmarks on log LR, each with its own error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lrrunner.core.curve import Curve, noise_std
from lrrunner.core.lr_schedules import FloatArray

SIGNIFICANCE = 4.0
"""Standard errors that a fall or a rise must exceed: the extreme of a dozen independent windows of pure noise
exceeds four about once in a thousand sweeps."""

GRADIENT_RISE = 1.5
"""A gradient norm this much above its initial level has left the region that the training starts in."""

LOST_SHARE = 0.75
"""A loss that has lost this share of its fall again has blown up, whether or not it comes back."""

CLEAR_OF_NOISE = 3.0
"""Standard deviations above its limit at which the median of three losses is no accident."""

CLEAR_BEFORE_FALL = 6.0
"""The same where the loss will fall, but has not yet: by chance, two of three losses of a long start lie higher."""

BEGUN_SHARE = 0.2
"""Share of its fall that a loss must be over for the fall to have begun."""

GRADIENT_NOISE = 2.0
"""The same for logarithms of gradient norms: one landmark of five may be an accident now and then."""

FALL_SHARES = {"half_fall": 0.5, "most_of_fall": 0.9}
"""Landmarks of a fall, and the share of it that is over there; a third is the minimum."""

BLOW_UP_ERROR, GRADIENT_RISE_ERROR = 0.15, 0.25
"""Standard errors in decades of the two landmarks that noise is not redrawn for: two and three steps of a hundred."""

NUM_REDRAWS = 200


class Landmark(NamedTuple):
    """An LR of a sweep.

    Attributes:
        log_lr: log10 of the LR.
        error: Standard error in decades.
        steps_per_decade: Steps that the sweep takes for one decade there.
    """

    log_lr: float
    error: float
    steps_per_decade: float


def landmarks(curve: Curve) -> dict[str, Landmark]:
    """The landmarks that are seen, by name: half_fall, most_of_fall, minimum, blow_up, gradient_rise.

    The first three only where the fall stands out from the noise. Their errors are those under redrawn noise.
    """
    found = {}
    if falls(curve):
        logs = fall_logs(curve, curve.smoothed[:, None])
        redrawn = fall_logs(curve, redrawn_curves(curve))
        found = {name: (float(logs[name][0]), float(redrawn[name].std())) for name in logs}
    if (blow_up := blow_up_index(curve)) is not None:
        found["blow_up"] = float(np.log10(curve.lr[blow_up])), BLOW_UP_ERROR
    if (rise := _gradient_rise_index(curve)) is not None:
        found["gradient_rise"] = float(np.log10(curve.lr[rise])), GRADIENT_RISE_ERROR
    x = np.log10(curve.lr)
    return {
        name: Landmark(log_lr, error, float(np.interp(log_lr, x, curve.steps_per_decade)))
        for name, (log_lr, error) in found.items()
    }


def falls(curve: Curve) -> bool:
    """Whether the loss falls, after its start, by more than noise and rounding."""
    lowest = curve.minimum_index
    error = np.hypot(curve.error[lowest], 1.25 * curve.noise / np.sqrt(curve.num_start))
    return lowest >= curve.num_start and curve.fall > max(SIGNIFICANCE * error, 1e-6 * abs(curve.level))


def fall_logs(curve: Curve, smoothed: FloatArray) -> dict[str, FloatArray]:
    """log10 of the LRs where each column of ``smoothed``, shape (T, K), is over so much of its fall; shapes (K,).

    The fall leads from the initial level to the lowest loss before the blow-up.
    """
    x, indices = np.log10(curve.lr), np.arange(len(curve.lr))[:, None]
    blow_up = blow_up_index(curve)
    end = len(x) if blow_up is None else max(blow_up, curve.num_start + 1)
    lowest = smoothed[:end].argmin(axis=0)
    fall = curve.level - smoothed[:end].min(axis=0)
    found = {}
    for name, share in FALL_SHARES.items():
        is_before = (smoothed >= curve.level - share * fall) & (indices <= lowest)
        last_before = np.where(is_before.any(axis=0), len(x) - 1 - is_before[::-1].argmax(axis=0), -1)
        found[name] = x[np.minimum(last_before + 1, lowest)]
    return found | {"minimum": x[lowest]}


def redrawn_curves(curve: Curve) -> FloatArray:
    """The smoothed curve under redrawn noise, shape (T, NUM_REDRAWS).

    A wild bootstrap: residuals keep their size and place and get random signs, so noise that changes along the curve is
    redrawn as it is.

    References:
        Wu 1986, doi:10.1214/aos/1176350142.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(curve.lr), NUM_REDRAWS))
    redrawn = curve.smoothed[:, None] + (curve.loss - curve.smoothed)[:, None] * signs
    return np.asarray(curve.smoother.value @ redrawn)


def blow_up_index(curve: Curve) -> int | None:
    """First index at which the raw loss, as a median of three, has clearly lost most of the fall so far again."""
    level = max(curve.level, float(np.median(curve.raw[: len(curve.raw) // 3 + 1])))  # whichever start was calmer
    medians = _medians_of_three(curve.raw)
    after_start = np.where(np.arange(len(medians)) < curve.num_start, level, medians)
    fall = level - np.minimum.accumulate(np.minimum(after_start, level))
    has_begun = curve.level - np.minimum.accumulate(curve.smoothed) >= BEGUN_SHARE * curve.fall
    clear = np.where(has_begun, CLEAR_OF_NOISE, CLEAR_BEFORE_FALL) * curve.noise
    limit = level - (1 - LOST_SHARE) * fall + np.maximum(clear, 1e-6 * abs(level))
    return _first_above(medians, limit, start=curve.num_start)


def _gradient_rise_index(curve: Curve) -> int | None:
    """First index at which the gradient norm stands clear of its initial level; None when it is not seen."""
    norms = np.log(np.maximum(curve.grad_norm, np.finfo(float).tiny))
    start = norms[: max(curve.num_start, len(norms) // 4)]
    clear = np.median(start) + max(np.log(GRADIENT_RISE), GRADIENT_NOISE * noise_std(start))
    return _first_above(_medians_of_three(norms), clear, start=curve.num_start)


def _medians_of_three(values: FloatArray) -> FloatArray:
    """Each value's median with its two neighbours."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0))


def _first_above(values: FloatArray, limit: FloatArray | float, *, start: int) -> int | None:
    """First index from ``start`` on at which a value exceeds the limit."""
    found = np.flatnonzero((values > limit)[start:])
    return start + int(found[0]) if len(found) else None
