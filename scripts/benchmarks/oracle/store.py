"""Measurements of a job, one JSON array a line, only ever appended to: a killed measurement loses one training.

``["initial", seed, loss]``: validation loss before any training.
``["train", num_steps, schedule, position, seed, loss]``: validation loss at the end; null where it diverged. The LR is
10 ** (position / 4).
``["sweep", start_lr, end_lr, num_steps, seed, losses, gradient norms]``: up to the first loss that is not finite or 20
times the initial one.
``["noise", seed, variance, signal]``: trace of the covariance of one sample's gradient, and the squared norm of its
mean, before any training.
``["lr_free", optimizer, version, num_steps, schedule, seed, loss]``: validation loss after a training by an optimizer
that needs no LR, in place of the job's own; null where it diverged.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

POSITIONS_PER_DECADE = 4


def lr_at(position: float) -> float:
    """Learning rate at a position of the grid."""
    return float(10 ** (position / POSITIONS_PER_DECADE))


def position_of(lr: float) -> float:
    """Position of a learning rate on the grid, a fraction between its points."""
    return POSITIONS_PER_DECADE * math.log10(lr)


class Ladder(NamedTuple):
    """The learning rates of a sweep and the seed of its model and data."""

    start_lr: float
    end_lr: float
    num_steps: int
    seed: int


class Sweep(NamedTuple):
    """What a sweep recorded, shape (T,) each; the losses may end before the ladder does."""

    losses: Any
    grad_norms: Any


class Store:
    """Measurements of one job.

    Args:
        path: Its file; missing is empty.

    Attributes:
        initial: Seed -> validation loss before any training.
        trainings: (num_steps, schedule) -> position -> seed -> validation loss, infinite where it diverged.
        sweeps: The sweeps.
        noise: Seed -> (variance, signal).
        lr_free: Optimizer without an LR -> (num_steps, schedule) -> seed -> validation loss, infinite where diverged.
        versions: Optimizer without an LR -> version of its package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.initial: dict[int, float] = {}
        self.trainings: dict[tuple[int, str], dict[int, dict[int, float]]] = {}
        self.sweeps: dict[Ladder, Sweep] = {}
        self.noise: dict[int, tuple[float, float]] = {}
        self.lr_free: dict[str, dict[tuple[int, str], dict[int, float]]] = {}
        self.versions: dict[str, str] = {}
        self._torn_at: int | None = None
        if path.exists():
            content = path.read_text()
            complete = content[: content.rfind("\n") + 1]
            self._torn_at = len(complete.encode()) if len(complete) < len(content) else None
            for line in complete.splitlines():
                self._take(json.loads(line))

    @property
    def start(self) -> float:
        """Median validation loss before any training."""
        return float(np.median(list(self.initial.values())))

    def add(self, *row: Any) -> None:
        """Append one measurement to the file, after the last complete one."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        with self.path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
        self._take(list(row))

    def _take(self, row: list[Any]) -> None:
        match row:
            case ["initial", seed, loss]:
                self.initial[seed] = loss
            case ["train", num_steps, schedule, position, seed, loss]:
                by_position = self.trainings.setdefault((num_steps, schedule), {})
                by_position.setdefault(position, {})[seed] = math.inf if loss is None else loss
            case ["sweep", start_lr, end_lr, num_steps, seed, losses, norms]:
                ladder = Ladder(start_lr, end_lr, num_steps, seed)
                self.sweeps[ladder] = Sweep(np.array(losses, dtype=float), np.array(norms, dtype=float))
            case ["noise", seed, variance, signal]:
                self.noise[seed] = variance, signal
            case ["lr_free", name, version, num_steps, schedule, seed, loss]:
                by_training = self.lr_free.setdefault(name, {})
                by_training.setdefault((num_steps, schedule), {})[seed] = math.inf if loss is None else loss
                self.versions[name] = version
            case _:
                raise ValueError(f"{self.path.name} holds an unknown row: {row[:2]}")


def rounded(value: float, digits: int = 6) -> float | None:
    """What a measurement is worth; None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
