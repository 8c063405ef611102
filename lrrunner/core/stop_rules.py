"""When a sweep has diverged. Each rule sees reduced losses only, so every rank decides alike."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Protocol

NOISE_FLOORS = 4.0
"""How many standard deviations of the raw loss count as a fall when nothing has fallen yet (law 5's c)."""

MIN_REFERENCE_STEPS = 10
"""Fewer give no usable estimate of the noise, with two differences every hundredth flat sweep would stop."""

TRIAL_FACTOR = 10.0
"""Five times the sweep's default: cutting a trial short saves time alone, cutting the wrong one costs the answer."""

FLOAT32_RESOLUTION = 1e-6
"""Relative step below which float32 losses differ by rounding alone (8 ulp)."""


class StopRule(Protocol):
    """Decides after each finite step whether the sweep has diverged."""

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        """True once the loss has diverged.

        Args:
            raw_loss: Loss of the step.
            smoothed_loss: Its causal average.
            noisy_loss: Another loss of the step, which shows the noise; None: ``raw_loss`` does.
        """
        ...


@dataclass(slots=True)
class RangeStop:
    """Diverged when the smoothed loss rises above its lowest value by ``factor`` times the fall so far.

    s_i - best > factor * max(s_ref - best, c * noise), with best the lowest smoothed loss so far, s_ref the median of
    the first n = ``reference_steps`` smoothed losses, and noise an upper estimate (three standard errors) of the
    standard deviation of the raw loss: 1 + 3 / sqrt(n - 1) times what the first differences of these steps give.
    Differences only: negative and near-zero losses are safe, and neither a shift nor a change of unit moves the stop.

    Args:
        factor: Falls above the lowest point that count as divergence, positive.
        reference_steps: Steps that fix s_ref and noise; no stop before they are over.
    """

    factor: float
    reference_steps: int
    _raw: list[float] = field(default_factory=list)
    _smoothed: list[float] = field(default_factory=list)
    _best: float = math.inf
    _reference: float = math.nan
    _noise: float = math.nan

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        """True once the loss has diverged."""
        self._best = min(self._best, smoothed_loss)
        if len(self._raw) < self.reference_steps:
            self._raw.append(raw_loss if noisy_loss is None else noisy_loss)
            self._smoothed.append(smoothed_loss)
            if len(self._raw) == self.reference_steps:
                self._reference = sorted(self._smoothed)[(self.reference_steps - 1) // 2]
                margin = 1 + 3 / math.sqrt(self.reference_steps - 1)
                self._noise = max(margin * _noise(self._raw), FLOAT32_RESOLUTION * abs(self._reference))
            return False
        scale = max(self._reference - self._best, NOISE_FLOORS * self._noise)
        return smoothed_loss - self._best > self.factor * scale


@dataclass(slots=True)
class RatioStop:
    """Diverged when the smoothed loss exceeds ``factor`` times the best raw loss.

    The rule of the TF2 article "How to Find a Descent Learning Rate", which compares a smoothed with a raw loss. It has
    a meaning for positive losses only: it never fires while the best loss is zero or below.

    Args:
        factor: Multiple of the best raw loss that counts as divergence, above 1.
    """

    factor: float
    _best: float = math.inf

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        """True once the loss has diverged."""
        self._best = min(self._best, raw_loss)
        return self._best > 0 and smoothed_loss > self.factor * self._best


@dataclass(slots=True)
class PatientStop:
    """Diverged when another rule fires for ``patience`` steps in a row: a spike that recovers is no divergence.

    Args:
        rule: The rule to be confirmed.
        patience: Steps in a row, at least 1.
    """

    rule: StopRule
    patience: int
    _in_a_row: int = 0

    def update(self, raw_loss: float, smoothed_loss: float, *, noisy_loss: float | None = None) -> bool:
        """True once the loss has diverged for long enough."""
        self._in_a_row = self._in_a_row + 1 if self.rule.update(raw_loss, smoothed_loss, noisy_loss=noisy_loss) else 0
        return self._in_a_row >= self.patience


def trial_stop_rule(*, num_steps: int) -> StopRule:
    """A new stop rule for a confirmation run of ``num_steps`` steps, which stops only what will not recover.

    The smoothed loss has to lie TRIAL_FACTOR falls above its best, for a quarter of the schedule: what a high learning
    rate throws up in the beginning may well come down again below everything else.

    References:
        Lewkowycz et al. 2020, arXiv:2003.02218: losses that rise far and then settle lower.
    """
    return PatientStop(stop_rule("range", factor=TRIAL_FACTOR, num_steps=num_steps), patience=max(1, num_steps // 4))


def stop_rule(name: str, *, factor: float, num_steps: int) -> StopRule:
    """A new stop rule for one repeat of a sweep of ``num_steps`` steps.

    Raises:
        ValueError: unknown name.
    """
    if name == "range":
        return RangeStop(factor=factor, reference_steps=max(MIN_REFERENCE_STEPS, num_steps // 10))
    if name == "ratio":
        return RatioStop(factor=factor)
    raise ValueError(f"stop_rule must be one of range, ratio; got {name}")


def _noise(raw_losses: list[float]) -> float:
    """Standard deviation of independent noise from first differences: sqrt(mean(d**2) / 2)."""
    differences = [b - a for a, b in itertools.pairwise(raw_losses)]
    return math.hypot(*differences) / math.sqrt(2 * len(differences))
