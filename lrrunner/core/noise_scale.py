"""The gradient noise scale: how large a batch is before a larger one stops paying.

McCandlish et al. 2018, arXiv:1812.06162, section 2 and appendix A: with G the expected gradient and V the trace of the
covariance of one sample's gradient, a step on B samples makes 1 / (1 + (V / |G|^2) / B) of the progress that a step on
all samples would make. V / |G|^2, the simple noise scale, is the critical batch size: much below it, twice the batch is
worth nearly twice the step; much above it, nothing. A gradient over n samples has the expected squared norm
|G|^2 + V / n, so that those of a batch and of its parts give both unknowns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrrunner.core.curve import curve_from_steps
from lrrunner.core.lr_schedules import FloatArray
from lrrunner.records import NoiseScale, Step, Suggestion

MIN_STEPS = 8
"""Fewer steps give no usable estimate of their own spread."""

CONFIDENCE_Z = 1.6448536269514722
"""95 % quantile of the normal distribution: a two-sided 90 % interval."""


class Ratio(NamedTuple):
    """A ratio of two means and its interval; infinite where the denominator may be nothing."""

    value: float
    low: float
    high: float


def gradient_variance(mean_square: float, norm: float, *, num_items: float, num_parts: float) -> float:
    """Unbiased estimate of V, the trace of the covariance of one item's gradient, from one step.

    With parts of n_i items that add up to N, the mean of |g_i|^2 weighted by n_i has the expectation |G|^2 + k V / N,
    and the squared norm of the whole gradient |G|^2 + V / N.

    Args:
        mean_square: Mean of the squared gradient norms of the parts, weighted by their items.
        norm: Norm of the gradient over all items, the mean of the parts' weighted alike.
        num_items: N.
        num_parts: k, parts that hold items.

    Returns:
        V in squared gradient units times items; NaN with less than two parts.

    >>> gradient_variance(10.0, 2.0, num_items=8.0, num_parts=4.0)
    16.0
    """
    return (mean_square - norm * norm) * num_items / (num_parts - 1) if num_parts >= 2 else math.nan


def noise_scale(steps: Sequence[Step], suggestion: Suggestion, *, beta: float, global_batch_size: int) -> NoiseScale:
    """The critical batch size over the stable part of a sweep.

    V and |G|^2 are estimated without bias in each step, averaged, and only then divided: a ratio of noisy numbers would
    be biased. The 90 % interval accounts for the correlation of neighbouring steps.

    Args:
        steps: Records of the pass that the suggestion is from, with ``gradient_variance``.
        suggestion: What its curve supports.
        beta: Memory of the causal EMA in [0, 1).
        global_batch_size: Samples a step, the unit of the result; records count items.
    """
    stable = stable_steps(steps, suggestion, beta=beta)
    measured = [step for step in stable if math.isfinite(_variance(step))]
    if len(measured) < MIN_STEPS:
        why = f"{MIN_STEPS} steps below the suggested LRs are needed, got {len(stable)}; lower sweep.start_lr"
        if len(stable) >= MIN_STEPS:
            why = "no step gave two gradients that can be compared"
        return NoiseScale(num_steps=len(measured), reason=why)
    by_repeat = [list(group) for _, group in itertools.groupby(measured, key=lambda step: step.repeat)]
    variances = [np.array([_variance(step) for step in group]) for group in by_repeat]
    signals = [
        np.array([step.grad_norm**2 - _variance(step) / step.num_items for step in group]) for group in by_repeat
    ]
    samples_per_item = global_batch_size / float(np.mean([step.num_items for step in measured]))
    ratio = Ratio(*(samples_per_item * value for value in ratio_of_means(variances, signals)))
    return NoiseScale(
        critical_batch_size=_finite(ratio.value),
        low=ratio.low,
        high=_finite(ratio.high),
        num_steps=len(measured),
        last_lr=max(step.lr for step in measured),
        reason="" if math.isfinite(ratio.value) else "the mean gradient does not stand out from its noise",
    )


def stable_steps(steps: Sequence[Step], suggestion: Suggestion, *, beta: float) -> list[Step]:
    """Applied steps up to the lower end of the suggestion's interval; repeats in order.

    Up to there the loss begins to fall, and gradients keep their size. Beyond, they grow a hundredfold within a few
    steps, long before the loss rises, and a mean over both would be one over the last steps. Without a
    suggestion, up to the lowest smoothed loss.
    """
    curve = curve_from_steps(steps, beta=beta)
    if curve is None:
        return []
    lowest = float(curve.lr[curve.minimum_index])
    last_lr = lowest if suggestion.interval is None else min(lowest, suggestion.interval[0])
    stable = [step for step in steps if step.lr <= last_lr and step.is_finite and not step.skipped]
    return sorted(stable, key=lambda step: (step.repeat, step.step))


def _variance(step: Step) -> float:
    return math.nan if step.gradient_variance is None else step.gradient_variance


def ratio_of_means(numerators: Sequence[FloatArray], denominators: Sequence[FloatArray]) -> Ratio:
    """The ratio of the means of two correlated series, both positive in expectation, with a 90 % interval.

    Fieller's interval: the ratios r for which mean(numerator - r * denominator) does not differ from 0. It has no upper
    end where the mean denominator itself does not differ from 0. The variance of the means sums autocovariances under
    Bartlett's window of sqrt(T) lags, and the quantile is Student's with 3 T / 2 L degrees of freedom.

    Args:
        numerators: One array a run of neighbouring values, shapes (T_r,); at least two values in all.
        denominators: The same shapes.

    References:
        Fieller 1954 (J. R. Statist. Soc. B 16); Newey and West 1987 (Econometrica 55); Priestley 1981, section 6.2.
    """
    runs = [np.stack(pair, axis=1) for pair in zip(numerators, denominators, strict=True)]
    num_values = sum(map(len, runs))
    mean = np.concatenate(runs).mean(axis=0)
    num_lags = math.ceil(math.sqrt(num_values / len(runs)))
    lost = num_lags / num_values  # share of the variance that goes into the mean, and out of the differences from it
    covariance = sum(_summed_autocovariance(run - mean, num_lags) for run in runs) / num_values**2 / (1 - lost)
    quantile = _student_quantile(1.5 * num_values / num_lags)
    squares = np.outer(mean, mean) - quantile**2 * covariance  # of r**2, 2 r and 1 in Fieller's parabola
    c, b, a = squares[0, 0], squares[0, 1], squares[1, 1]
    root = math.sqrt(max(0.0, b * b - a * c))
    return Ratio(
        value=max(0.0, mean[0]) / mean[1] if mean[1] > 0 else math.inf,
        low=c / (b + root) if c > 0 and b + root > 0 else 0.0,
        high=(b + root) / a if a > 0 and mean[1] > 0 else math.inf,
    )


def _summed_autocovariance(values: FloatArray, num_lags: int) -> FloatArray:
    """T times the long-run covariance of centred ``values`` of shape (T, 2)."""
    total: FloatArray = values.T @ values
    for lag in range(1, min(num_lags, len(values))):
        product = values[lag:].T @ values[:-lag]
        total = total + (1 - lag / num_lags) * (product + product.T)
    return total


def _student_quantile(degrees: float) -> float:
    """The 95 % quantile of Student's distribution, from the normal one (Cornish and Fisher's expansion)."""
    z = CONFIDENCE_Z
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
