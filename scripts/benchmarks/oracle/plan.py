"""What to measure next of a job: pure functions of what is known of it, so that a killed measurement just goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from oracle.store import Store

LENGTHS = (25, 50, 100, 200, 400, 1000, 5000)
SCHEDULES = ("constant", "linear", "cosine")
MAX_DISTANCE = 16
"""Positions, four decades, from where a search begins to where it gives up: a few steps may learn nothing at any LR."""


class Training(NamedTuple):
    """A training to do next."""

    num_steps: int
    schedule: str
    position: int
    seed: int


class Bowl(NamedTuple):
    """How the loss over LRs is measured at one length and schedule.

    Attributes:
        num_steps: Length.
        schedule: Schedule.
        num_seeds: Offset from the best position -> how many of the seeds it gets.
        seeds: Seeds.
    """

    num_steps: int
    schedule: str
    num_seeds: Mapping[int, int]
    seeds: Sequence[int]


def robust_losses(by_position: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Median over seeds by position, in the order of positions: one collapsed run of several does not count."""
    return {position: float(np.median(list(by_position[position].values()))) for position in sorted(by_position)}


def next_training(store: Store, bowl: Bowl, *, start: int) -> Training | None:
    """The next training of a bowl, or None when it is complete.

    Half decades from ``start`` on until the lowest loss lies between higher ones, with the first seed; then what
    ``num_seeds`` asks for around the lowest. Positions above one that ends clearly above its start are left out.
    """
    known = store.trainings.get((bowl.num_steps, bowl.schedule), {})
    first = bowl.seeds[0]
    for position in _search(known, start, store.start):
        if first not in known.get(position, {}):
            return Training(bowl.num_steps, bowl.schedule, position, first)
    losses = robust_losses(known)
    best = _lowest(losses, start)
    hopeless = min((p for p, loss in losses.items() if p > best and not loss < store.start), default=math.inf)
    for i, seed in enumerate(bowl.seeds):
        for offset, num_seeds in bowl.num_seeds.items():
            position = best + offset
            if abs(position - start) > MAX_DISTANCE or position > hopeless:
                continue
            if i < num_seeds and seed not in known.get(position, {}):
                return Training(bowl.num_steps, bowl.schedule, position, seed)
    return None


def _search(known: Mapping[int, Mapping[int, float]], start: int, initial: float) -> Iterator[int]:
    """Positions that close in on the lowest loss, half a decade apart; each must be known before the next is asked."""
    yield start
    losses = robust_losses(known)
    best = _lowest(losses, start)
    if not losses[best] < initial:  # nothing learnt yet: lower after a divergence, else higher
        step = -2 if math.isinf(losses[min(losses)]) else 2
        position = min(losses) - 2 if step < 0 else max(losses) + 2
        if abs(position - start) <= MAX_DISTANCE:
            yield position
        return
    yield from (position for position in (best + 2, best - 2) if abs(position - start) <= MAX_DISTANCE)


def _lowest(losses: Mapping[int, float], start: int) -> int:
    """Position of the lowest loss, of several the nearest to where the search began."""
    return min(losses, key=lambda position: (losses[position], abs(position - start)))
