"""LR schedules of sweeps and of trainings: step -> learning rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def exponential_lr(*, start_lr: float, end_lr: float, num_steps: int) -> FloatArray:
    """Learning rates at equal ratios.

    lr_i = start * (end / start)**(i / (N - 1)), i = 0 .. N - 1; both ends are met exactly.

    Args:
        start_lr: First LR, finite and positive.
        end_lr: Last LR, finite and above ``start_lr``.
        num_steps: Number of steps N, at least 2.

    Returns:
        Learning rates, shape (N,), strictly increasing.

    Raises:
        ValueError: bounds not finite, not positive or not increasing; fewer than two steps.

    References:
        Smith 2015, arXiv:1506.01186, section 3.3; exponential spacing after fastai.

    >>> exponential_lr(start_lr=0.25, end_lr=4.0, num_steps=5).tolist()
    [0.25, 0.5, 1.0, 2.0, 4.0]
    """
    _check_range(start_lr, end_lr, num_steps)
    fraction = np.arange(num_steps) / (num_steps - 1)
    lrs = np.exp2(np.log2(start_lr) * (1 - fraction) + np.log2(end_lr) * fraction)
    return _with_exact_ends(lrs, start_lr, end_lr)


def linear_lr(*, start_lr: float, end_lr: float, num_steps: int) -> FloatArray:
    """Learning rates at equal distances.

    lr_i = start + (end - start) * i / (N - 1), i = 0 .. N - 1; both ends are met exactly.

    Args and errors as in :func:`exponential_lr`.

    References:
        Smith 2015, arXiv:1506.01186, section 3.3.

    >>> linear_lr(start_lr=1.0, end_lr=2.0, num_steps=3).tolist()
    [1.0, 1.5, 2.0]
    """
    _check_range(start_lr, end_lr, num_steps)
    fraction = np.arange(num_steps) / (num_steps - 1)
    return _with_exact_ends(start_lr * (1 - fraction) + end_lr * fraction, start_lr, end_lr)


def constant_schedule(peak_lr: float, *, num_steps: int) -> FloatArray:
    """Learning rates of a training at one rate, shape (num_steps,)."""
    return np.full(num_steps, peak_lr)


def cosine_schedule(peak_lr: float, *, num_steps: int) -> FloatArray:
    """Linear warm-up over the first tenth of the steps, then half a cosine down towards zero.

    Args:
        peak_lr: Highest LR.
        num_steps: Steps T; the warm-up takes W = max(1, T // 10) of them.

    Returns:
        Learning rates, shape (T,): lr_i = peak * (i + 1) / W for i < W, then
        peak * (1 + cos(pi (i - W) / (T - W))) / 2.

    References:
        Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts.

    >>> cosine_schedule(1.0, num_steps=5).round(3).tolist()
    [1.0, 1.0, 0.854, 0.5, 0.146]
    """
    steps = np.arange(num_steps)
    warm_up = max(1, num_steps // 10)
    decay = 0.5 * (1 + np.cos(np.pi * (steps - warm_up) / max(1, num_steps - warm_up)))
    return np.asarray(peak_lr * np.where(steps < warm_up, (steps + 1) / warm_up, decay))


TRAINING_SCHEDULES = {"constant": constant_schedule, "cosine": cosine_schedule}

SWEEP_SCHEDULES = {"exponential": exponential_lr, "linear": linear_lr}


def _with_exact_ends(lrs: FloatArray, start_lr: float, end_lr: float) -> FloatArray:
    lrs[0], lrs[-1] = start_lr, end_lr
    return lrs


def _check_range(start_lr: float, end_lr: float, num_steps: int) -> None:
    if not (np.isfinite(start_lr) and start_lr > 0):
        raise ValueError(f"start_lr must be finite and above 0, got {start_lr}; try 1e-7")
    if not np.isfinite(end_lr):
        raise ValueError(f"end_lr must be finite, got {end_lr}; try 10")
    if end_lr <= start_lr:
        raise ValueError(f"end_lr must exceed start_lr={start_lr}, got {end_lr}; raise end_lr")
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}; try 100")
