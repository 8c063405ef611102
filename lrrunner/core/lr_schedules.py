"""LR schedules of sweeps and of trainings: step -> learning rate."""

from __future__ import annotations

from collections.abc import Callable

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


DECAYS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "constant": np.ones_like,
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + np.cos(np.pi * x)),
}
"""Name of a training's schedule -> its LR over the peak, by the share x in [0, 1) of the steps after the warm-up."""

SHORTEST_WARMUP = 10
"""A trial that is shorter than the training warms up over at least a tenth of its steps, where the training does over
as many: what a warm-up prevents takes a number of steps, of which a short trial's proportional share may be none."""


def training_lrs(peak_lr: float, *, schedule: str, num_steps: int, warmup_steps: int = 0) -> FloatArray:
    """Learning rates of a training: linear warm-up, then constant or down towards zero.

    Args:
        peak_lr: Highest LR.
        schedule: Name in ``DECAYS``.
        num_steps: Steps T.
        warmup_steps: Steps W of the warm-up, below T.

    Returns:
        Learning rates, shape (T,): lr_i = peak * (i + 1) / W for i < W, then peak * decay((i - W) / (T - W)).

    References:
        Loshchilov and Hutter 2016, arXiv:1608.03983, for the cosine, without restarts.

    >>> training_lrs(1.0, schedule="cosine", num_steps=6, warmup_steps=2).round(3).tolist()
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"warmup_steps must lie in [0, {num_steps}), got {warmup_steps}; warm up for fewer steps")
    warmup = np.arange(1, warmup_steps + 1) / max(1, warmup_steps)
    num_decaying = num_steps - warmup_steps
    return peak_lr * np.concatenate([warmup, DECAYS[schedule](np.arange(num_decaying) / num_decaying)])


def trial_warmup_steps(num_steps: int, *, training_steps: int | None, warmup_steps: int) -> int:
    """Warm-up of a trial of so many steps: the training's share of them, but at least a tenth, and never more steps.

    Args:
        num_steps: Steps of the trial.
        training_steps: Steps of the training; None if not known.
        warmup_steps: Steps of the training's warm-up.

    >>> [trial_warmup_steps(n, training_steps=1000, warmup_steps=300) for n in (10, 100, 1000)]
    [3, 30, 300]
    >>> trial_warmup_steps(50, training_steps=100_000, warmup_steps=2000)
    5
    """
    share = 0 if training_steps is None else round(num_steps * warmup_steps / training_steps)
    return min(warmup_steps, max(share, num_steps // SHORTEST_WARMUP), num_steps - 1)


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
