"""The suggestion rules of other learning-rate finders, with their own smoothing, stop and cut, on a recorded sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lrrunner.core.smoothing import ema

FIRST_CUT = 10
"""Points that fastai drops at the start of 100: a tenth."""

PEER_RANGES = {"luz_gugger": (1e-7, 0.1), "lightning": (1e-8, 1.0), "ignite": (1e-3, 10.0)}
"""LR ranges that these sweep by default; others 1e-7 to 10. Ignite starts at the optimizer's LR, torch's default."""


def _ema_seeded(losses: Any, beta: float) -> Any:
    """First value as seed, no bias correction."""
    smoothed = [losses[0]]
    for loss in losses[1:]:
        smoothed.append(beta * smoothed[-1] + (1 - beta) * loss)
    return np.array(smoothed)


def _until(stop: Callable[[int], bool], size: int) -> int:
    """Points up to and with the first that stops."""
    return next((i + 1 for i in range(size) if stop(i)), size)


def _finite_part(lrs: Any, losses: Any) -> tuple[Any, Any]:
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if len(bad) else len(losses)
    return lrs[:end], losses[:end]


def torch_lr_finder(lrs: Any, losses: Any) -> float | None:
    """Steepest by index on a seeded EMA (0.95), stopped at 5 x best, ten points cut at the start, five at the end."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = _ema_seeded(losses, 0.95)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 5 * best[i]), len(smoothed))
    cut = slice(10, end - 5)
    if len(smoothed[cut]) < 2:
        return None
    return float(lrs[cut][int(np.argmin(np.gradient(smoothed[cut])))])


def _fastai_curve(lrs: Any, losses: Any) -> tuple[Any, Any]:
    """Bias-corrected EMA (0.98), stopped at 4 x best, a tenth cut at the start and five points at the end."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = ema(losses, beta=0.98)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 4 * best[i]), len(smoothed))
    return lrs[FIRST_CUT : end - 5], smoothed[FIRST_CUT : end - 5]


def fastai_minimum(lrs: Any, losses: Any) -> float | None:
    """A tenth of the minimum's LR."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    return float(lrs[int(np.argmin(smoothed))]) / 10 if len(lrs) else None


def fastai_steep(lrs: Any, losses: Any) -> float | None:
    """Steepest difference against log LR."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    return float(lrs[int(np.argmin(np.diff(smoothed) / np.diff(np.log(lrs))))]) if len(lrs) > 1 else None


def fastai_valley(lrs: Any, losses: Any) -> float | None:
    """Middle of as many points as the longest decreasing subsequence has, up to where the first such one ends."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    if len(lrs) == 0:
        return None
    lengths: list[int] = []
    for loss in smoothed:
        before = [length for length, higher in zip(lengths, smoothed, strict=False) if higher > loss]
        lengths.append(1 + max(before, default=0))
    end = int(np.argmax(lengths))
    length = lengths[end] if end else 0
    return float(lrs[end - length + int(length / 3) + int(length / 6)])


def fastai_slide(lrs: Any, losses: Any) -> float | None:
    """Left end of a window of 15 points that slides down until the slopes by index at its ends differ by 0.005."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    if len(lrs) < 16:
        return None
    slopes = np.gradient(smoothed)
    left, right, lr = len(lrs) - 16, len(lrs) - 1, float(lrs[-16])
    while left >= 0 and abs(slopes[right] - slopes[left]) > 0.005:
        lr = float(lrs[left])
        left, right = left - 1, right - 1
    return lr


def luz_gugger(lrs: Any, losses: Any) -> float | None:
    """A tenth of the minimum's LR on a bias-corrected EMA (0.9), without a stop."""
    lrs, losses = _finite_part(lrs, losses)
    return float(lrs[int(np.argmin(ema(losses, beta=0.9)))]) / 10


def lightning(lrs: Any, losses: Any) -> float | None:
    """Steepest against LR itself, on an EMA (0.98) whose bias correction is one step off, stopped at 4 x best."""
    lrs, losses = _finite_part(lrs, losses)
    average, smoothed = 0.0, []
    for i, loss in enumerate(losses):
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98 ** (i + 2)))
    values = np.array(smoothed)
    best = np.minimum.accumulate(values)
    end = _until(lambda i: i > 1 and bool(values[i] > 4 * best[i]), len(values))
    cut = slice(10, end - 1)
    return float(lrs[cut][int(np.argmin(np.gradient(values[cut], lrs[cut])))]) if len(values[cut]) > 1 else None


def tf2_article(lrs: Any, losses: Any) -> float | None:
    """Largest drop of a bias-corrected EMA (0.96), stopped at 4 x best raw loss."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = ema(losses, beta=0.96)
    best = np.minimum.accumulate(losses)
    end = _until(lambda i: bool(smoothed[i] > 4 * best[i]), len(smoothed))
    return float(lrs[int(np.argmin(np.diff(smoothed[:end]))) + 1]) if end > 1 else None


def ignite(lrs: Any, losses: Any) -> float | None:
    """Steepest by index, left of the minimum, on a seeded EMA in which a new loss weighs 0.05; stopped at 5 x best."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = _ema_seeded(losses, 0.95)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 5 * best[i]), len(smoothed))
    falling = smoothed[: int(np.argmin(smoothed[:end])) + 1]
    return float(lrs[int(np.argmin(falling[2:] - falling[:-2])) + 1]) if len(falling) > 2 else None


PEERS = (
    torch_lr_finder,
    fastai_minimum,
    fastai_slide,
    fastai_steep,
    fastai_valley,
    luz_gugger,
    lightning,
    ignite,
    tf2_article,
)
