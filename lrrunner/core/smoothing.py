"""Two smoothers: a causal one for the stop rules, and a zero-phase one for the suggestion rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lrrunner.core.lr_schedules import FloatArray


@dataclass(slots=True)
class Ema:
    """Running bias-corrected exponential moving average; constant in gives constant out, to the last bit.

    m_t = beta * m_{t-1} + (1 - beta) * loss_t and s_t = m_t / (1 - beta**t), t = 1, 2, ..., computed in the
    equivalent form s_t = s_{t-1} + (loss_t - s_{t-1}) * (1 - beta) / (1 - beta**t).

    Attributes:
        beta: Memory in [0, 1); 0 returns the input.
        value: The average so far, in the unit of the input.
        num_updates: Number of losses so far (t).

    Raises:
        ValueError: beta outside [0, 1).

    References:
        Kingma and Ba 2015, arXiv:1412.6980, section 3.
    """

    beta: float
    value: float = 0.0
    num_updates: int = field(default=0)

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}; try 0.9")

    def update(self, loss: float) -> float:
        """Add one loss; returns the new average."""
        self.num_updates += 1
        weight = (1 - self.beta) / (1 - self.beta**self.num_updates)
        self.value = loss if self.num_updates == 1 else self.value + (loss - self.value) * weight
        return self.value


def ema(losses: FloatArray, *, beta: float) -> FloatArray:
    """Bias-corrected exponential moving average of a whole curve.

    Args:
        losses: Reduced mean loss per step, shape (T,), finite.
        beta: Memory in [0, 1); 0 returns the input.

    Returns:
        Smoothed losses, shape (T,), same unit as the input.

    Raises:
        ValueError: beta outside [0, 1), or losses not 1-D.

    References:
        Kingma and Ba 2015, arXiv:1412.6980, section 3.

    >>> ema(np.array([4.0, 4.0]), beta=0.5).tolist()
    [4.0, 4.0]
    """
    if losses.ndim != 1:
        raise ValueError(f"losses must be 1-D, got shape {losses.shape}")
    average = Ema(beta)
    return np.array([average.update(float(loss)) for loss in losses])


@dataclass(frozen=True)
class LocalLinear:
    """A local straight line at every point of x: its value and its slope, as linear maps of the losses.

    Attributes:
        value: Shape (T, T); ``value @ losses`` is the smoothed curve.
        slope: Shape (T, T); ``slope @ losses`` is d loss / d x.
    """

    value: FloatArray
    slope: FloatArray


def local_linear(x: FloatArray, *, bandwidth: float, min_neighbours: int = 4) -> LocalLinear:
    """Zero-phase smoother: weighted least-squares lines with a Gaussian kernel of width ``bandwidth``.

    Symmetric in x, so it moves neither a minimum nor a steepest point of a symmetric neighbourhood, and unlike a
    moving average it does not flatten a slope at the ends. Where fewer than ``min_neighbours`` points lie within one
    bandwidth (the sparse side of a linear sweep), the kernel widens to reach them.

    Args:
        x: Positions (log10 of the LR for a sweep), shape (T,), strictly increasing, T >= 2.
        bandwidth: Standard deviation of the kernel, in units of x.
        min_neighbours: Points that each kernel reaches at least, itself included.

    Returns:
        The two linear maps.

    References:
        Cleveland 1979, doi:10.1080/01621459.1979.10481038 (local regression); Fan 1993, doi:10.1214/aos/1176349022
        (its behaviour at the ends).

    >>> line = np.array([1.0, 3.0, 5.0])
    >>> smoother = local_linear(np.array([0.0, 1.0, 2.0]), bandwidth=0.5)
    >>> np.round(smoother.value @ line, 12).tolist(), np.round(smoother.slope @ line, 12).tolist()
    ([1.0, 3.0, 5.0], [2.0, 2.0, 2.0])
    """
    distance = x[None, :] - x[:, None]
    reach = np.sort(np.abs(distance), axis=1)[:, min(min_neighbours, len(x)) - 1]
    width = np.maximum(bandwidth, reach)[:, None]
    weight = np.exp(-0.5 * (distance / width) ** 2)
    s0 = weight.sum(axis=1, keepdims=True)
    s1 = (weight * distance).sum(axis=1, keepdims=True)
    s2 = (weight * distance**2).sum(axis=1, keepdims=True)
    determinant = s0 * s2 - s1**2
    value = weight * (s2 - s1 * distance) / determinant
    slope = weight * (s0 * distance - s1) / determinant
    return LocalLinear(value=value, slope=slope)
