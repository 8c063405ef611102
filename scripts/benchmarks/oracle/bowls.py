"""The loss of a job over LRs, at one length and schedule, and the regret of an LR on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from oracle.store import Store, lr_at, position_of

NUM_RESAMPLES = 200
NUM_JOB_DRAWS = 20
"""Of jobs, for each draw of oracle seeds."""
MIN_POSITIONS = 5
MIN_SEEDS = 2


class Bowl(NamedTuple):
    """Final losses of a job over LRs, several seeds each.

    Attributes:
        positions: Of the LRs, shape (P,), increasing.
        losses: Shape (P, S), infinite where a training diverged, NaN where it was not done.
        start: Loss before any training.
    """

    positions: Any
    losses: Any
    start: float

    @property
    def middle(self) -> Any:
        """Median over seeds, shape (P,): one collapsed run of three or four does not count."""
        is_full = not np.isnan(self.losses).any()  # nanmedian takes ten times as long
        return np.median(self.losses, axis=1) if is_full else np.nanmedian(self.losses, axis=1)

    @property
    def best_position(self) -> int:
        """Position of the lowest median."""
        return int(self.positions[np.argmin(self.middle)])

    def resampled(self, random: np.random.Generator) -> Bowl:
        """The same with seeds drawn with replacement, for each LR anew."""
        drawn = []
        for row in self.losses:
            measured = row[~np.isnan(row)]
            drawn.append(np.resize(random.choice(measured, len(measured)), len(row)) if len(measured) else row)
        return self._replace(losses=np.array(drawn))

    def regret(self, lrs: Sequence[float | None]) -> Any:
        """Share of the achievable improvement that each LR loses, in [0, 1]; 1 without an LR.

        (L(lr) - L*) / (L0 - L*), with L the median over seeds, interpolated over log LR, L* its lowest value on the
        grid and L0 the loss before any training. Beyond the grid the line through the last two LRs goes on.
        """
        middle = self.middle
        lowest = middle.min()
        share = np.where(middle < self.start, (middle - lowest) / (self.start - lowest), 1.0)
        return np.array([1.0 if lr is None or math.isnan(lr) else self._at(position_of(lr), share) for lr in lrs])

    def share_lost(self, losses: Sequence[float]) -> float:
        """Regret of a training by another optimizer: negative where it beats the best LR of the job's own, at most 1.

        Args:
            losses: Final losses, one a seed, infinite where it diverged; their median counts.
        """
        lowest = self.middle.min()
        return min(1.0, float((np.median(losses) - lowest) / (self.start - lowest)))

    def _at(self, position: float, share: Any) -> float:
        x = self.positions
        if position < x[0]:
            return float(np.clip(share[0] + (position - x[0]) * min(0.0, share[1] - share[0]) / (x[1] - x[0]), 0, 1))
        if position > x[-1]:
            return float(
                np.clip(share[-1] + (position - x[-1]) * max(0.0, share[-1] - share[-2]) / (x[-1] - x[-2]), 0, 1)
            )
        return float(np.interp(position, x, share))


def bowl(store: Store, num_steps: int, schedule: str, seeds: Sequence[int] | None = None) -> Bowl | None:
    """The bowl of a job, from some seeds or all; None where too little was measured."""
    known = store.trainings.get((num_steps, schedule), {})
    wanted = sorted({seed for by_seed in known.values() for seed in by_seed}) if seeds is None else list(seeds)
    rows = {p: [by_seed.get(seed, math.nan) for seed in wanted] for p, by_seed in sorted(known.items())}
    rows = {p: row for p, row in rows.items() if not all(map(math.isnan, row))}
    found = Bowl(np.array(list(rows)), np.array(list(rows.values())), store.start) if rows else None
    return found if found is not None and _is_complete(found) else None


def _is_complete(found: Bowl) -> bool:
    """Whether the lowest loss lies inside, and it and its neighbours have several seeds."""
    best = found.best_position
    inside = found.positions[0] < best < found.positions[-1] and len(found.positions) >= MIN_POSITIONS
    counts = dict(zip(found.positions.tolist(), (~np.isnan(found.losses)).sum(axis=1).tolist(), strict=True))
    return inside and all(counts.get(best + i, 0 if i == 0 else MIN_SEEDS) >= MIN_SEEDS for i in (-1, 0, 1))


def noise_floor(found: Bowl) -> float:
    """What the best LR of one half of the seeds loses on the other half, on average over halves.

    No rule can be seen to be better than this; it is 0 only where the best LR is beyond doubt.
    """
    is_full = (~np.isnan(found.losses)).sum(axis=1) >= found.losses.shape[1]
    if is_full.sum() < 3 or found.losses.shape[1] < 2:
        return math.nan
    positions, losses = found.positions[is_full], found.losses[is_full]
    lost = []
    for i in range(losses.shape[1]):
        order = np.roll(np.arange(losses.shape[1]), i)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        first, second = (found._replace(positions=positions, losses=losses[:, half]) for half in halves)
        lost += [second.regret([lr_at(first.best_position)])[0], first.regret([lr_at(second.best_position)])[0]]
    return float(np.mean(lost))


class TrialTable:
    """Losses of short trainings of one job and seed, between the LRs and lengths that were measured.

    Linear over log LR and, within a seed, over log length: a trial that was not done is read off its neighbours. LRs
    beyond those measured go on along a line, up to the initial loss.

    Args:
        store: Measurements of the job.
        schedule: Schedule of the trials; each completes it.
        seed: Seed of the trials.
    """

    def __init__(self, store: Store, schedule: str, seed: int) -> None:
        self._start = store.start
        self._by_length: dict[int, tuple[Any, Any]] = {}
        for (num_steps, name), known in sorted(store.trainings.items()):
            points = {p: by_seed[seed] for p, by_seed in sorted(known.items()) if seed in by_seed}
            if name == schedule and len(points) >= MIN_POSITIONS:
                self._by_length[num_steps] = np.array(list(points)), np.minimum(list(points.values()), 1e30)

    @property
    def lengths(self) -> list[int]:
        """Lengths that were measured."""
        return list(self._by_length)

    def loss(self, lr: float, num_steps: int) -> float:
        """Loss at the end of a trial; the initial loss where it diverged or did worse."""
        values = [self._at(length, position_of(lr)) for length in self._by_length]
        return float(np.interp(math.log(num_steps), np.log(self.lengths), values))

    def _at(self, length: int, position: float) -> float:
        x, losses = self._by_length[length]
        capped = np.minimum(losses, self._start)
        if position < x[0]:
            slope = min(0.0, (capped[1] - capped[0]) / (x[1] - x[0]))
            return float(min(self._start, capped[0] + (position - x[0]) * slope))
        if position > x[-1]:
            slope = max(0.0, (capped[-1] - capped[-2]) / (x[-1] - x[-2]))
            return float(min(self._start, capped[-1] + (position - x[-1]) * slope))
        return float(np.interp(position, x, capped))


def interval_of_mean(values: Mapping[str, Any]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over jobs of (1 + resamples,) arrays: jobs and oracle seeds are drawn."""
    table, random = np.array(list(values.values())), np.random.default_rng(0)
    drawn = random.integers(0, len(table), (NUM_JOB_DRAWS, table.shape[1] - 1, len(table)))
    means = table[drawn, np.arange(1, table.shape[1])[:, None]].mean(axis=-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
