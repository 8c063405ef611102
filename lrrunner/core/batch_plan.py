"""Which rank trains on which samples: a pure function of (seed, repeat, step), independent of the number of ranks.

The order of an epoch is cut into global batches first, and these are split second, so any split over ranks and
accumulation steps holds the same samples, and a position in the data is just a step number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

TRIAL_DATA_ORDER = 1_000_000
"""Number of the data order that all confirmation runs share; repeats of a sweep have smaller numbers."""

EVALUATION_DATA_ORDER = 1_000_001
"""Number of the data order, and of the random numbers, of all evaluations."""

IndexArray = npt.NDArray[np.int64]


class EpochOrder(Protocol):
    """The sample indices of an epoch, in order: a pure function, the same on every rank."""

    def __call__(self, *, dataset_size: int, seed: int, repeat: int, epoch: int) -> IndexArray:
        """Indices of samples, each in [0, dataset_size), possibly repeated; shape (samples of the epoch,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a dataset is cut into global batches and these into micro-batches.

    Attributes:
        dataset_size: Samples in the dataset; at least one global batch, unless a sampler draws some of them repeatedly.
        global_batch_size: Samples per optimizer step over all ranks and accumulation steps.
        world_size: Number of ranks.
        accumulation_steps: Micro-batches per rank and optimizer step.
        order: Chooses the samples of each epoch; a shuffle of all by default.

    Raises:
        ValueError: the global batch does not split evenly, or exceeds the dataset.
    """

    dataset_size: int
    global_batch_size: int
    world_size: int = 1
    accumulation_steps: int = 1
    order: EpochOrder = field(default_factory=lambda: epoch_order)

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulation_steps
        if self.global_batch_size % parts:
            raise ValueError(f"global_batch_size={self.global_batch_size} is not divisible by {parts}")
        if self.order is epoch_order and self.dataset_size < self.global_batch_size:
            raise ValueError(
                f"the dataset must hold at least one global batch of {self.global_batch_size} samples, "
                f"got {self.dataset_size}"
            )

    @property
    def micro_batch_size(self) -> int:
        """Samples per forward pass of one rank."""
        return self.global_batch_size // (self.world_size * self.accumulation_steps)


def epoch_order(*, dataset_size: int, seed: int, repeat: int, epoch: int) -> IndexArray:
    """The shuffled sample indices of one epoch, shape (dataset_size,).

    >>> sorted(epoch_order(dataset_size=4, seed=0, repeat=0, epoch=0).tolist())
    [0, 1, 2, 3]
    """
    return np.random.default_rng([seed, repeat, epoch]).permutation(dataset_size)


def weighted_order(weights: npt.NDArray[np.float64], *, num_samples: int) -> EpochOrder:
    """Draw each sample of an epoch independently, with a probability proportional to its weight.

    Args:
        weights: One per sample of the dataset, finite, none below 0 and some above; shape (dataset_size,).
        num_samples: Samples of an epoch.
    """
    upper_bounds = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])

    def order(*, dataset_size: int, seed: int, repeat: int, epoch: int) -> IndexArray:
        drawn = np.random.default_rng([seed, repeat, epoch]).random(num_samples) * upper_bounds[-1]
        indices: IndexArray = np.searchsorted(upper_bounds, drawn, side="right").astype(np.int64)
        return np.minimum(indices, last)  # a number that was rounded up lies above all bounds

    return order


def listed_order(indices: IndexArray) -> EpochOrder:
    """A new shuffle of these indices each epoch; one that is listed twice is read twice."""

    def order(*, dataset_size: int, seed: int, repeat: int, epoch: int) -> IndexArray:
        return indices[epoch_order(dataset_size=len(indices), seed=seed, repeat=repeat, epoch=epoch)]

    return order


def global_batches(plan: BatchPlan, *, seed: int, repeat: int, first_step: int = 0) -> Iterator[IndexArray]:
    """Endless global batches from ``first_step`` on; each epoch has a new order, and its tail is dropped.

    Yields:
        Sample indices, shape (accumulation_steps, world_size, micro_batch_size).

    Raises:
        ValueError: an epoch does not fill one global batch.
    """
    shape = (plan.accumulation_steps, plan.world_size, plan.micro_batch_size)
    num_skipped = first_step
    for epoch in itertools.count():
        order = plan.order(dataset_size=plan.dataset_size, seed=seed, repeat=repeat, epoch=epoch)
        num_batches = len(order) // plan.global_batch_size
        if not num_batches:
            raise ValueError(
                f"data.sampler must give at least one global batch of {plan.global_batch_size} samples in each epoch, "
                f"got {len(order)} in epoch {epoch}; draw more, or lower data.global_batch_size"
            )
        for i in range(min(num_skipped, num_batches), num_batches):
            yield order[i * plan.global_batch_size : (i + 1) * plan.global_batch_size].reshape(shape)
        num_skipped = max(0, num_skipped - num_batches)


def micro_batches(plan: BatchPlan, *, seed: int, repeat: int, rank: int, first_step: int = 0) -> Iterator[list[int]]:
    """One rank's micro-batches in the order it trains on them, ``accumulation_steps`` of them per global batch.

    An endless batch sampler for a plain ``torch.utils.data.DataLoader``.
    """
    for batch in global_batches(plan, seed=seed, repeat=repeat, first_step=first_step):
        for micro_batch in batch[:, rank]:
            yield micro_batch.tolist()


def evaluation_batches(
    *, dataset_size: int, num_samples: int, batch_size: int, world_size: int, rank: int, seed: int
) -> list[tuple[list[int], int]]:
    """One rank's part of a fixed random subset of a dataset, in batches to evaluate.

    The subset is the same for every world size. Every rank gets the same number of batches, since a forward pass may
    communicate: a rank with fewer samples repeats one with a weight of 0.

    Args:
        dataset_size: Samples in the dataset, at least 1.
        num_samples: Maximal size of the subset.
        batch_size: Maximal size of a batch.
        world_size: Number of ranks.
        rank: This rank.
        seed: Chooses the subset.

    Returns:
        Pairs of sample indices and their weight: the number of samples, or 0 for a repeated one.

    >>> [evaluation_batches(dataset_size=3, num_samples=9, batch_size=1, world_size=2, rank=r, seed=0) for r in (0, 1)]
    [[([1], 1), ([2], 1)], [([0], 1), ([1], 0)]]
    """
    chosen = np.random.default_rng([seed, EVALUATION_DATA_ORDER]).permutation(dataset_size)[:num_samples]
    own = chosen[rank::world_size].tolist()
    num_batches = -(-len(chosen[::world_size]) // batch_size)
    batches = [own[i * batch_size : (i + 1) * batch_size] for i in range(num_batches)]
    return [(batch, len(batch)) if batch else (chosen[:1].tolist(), 0) for batch in batches]


def nearest_global_batch_sizes(global_batch_size: int, *, parts: int) -> list[int]:
    """The nearest sizes below and above that split evenly into ``parts`` = ranks x accumulation steps.

    >>> nearest_global_batch_sizes(10, parts=4)
    [8, 12]
    >>> nearest_global_batch_sizes(3, parts=4)
    [4]
    """
    below = global_batch_size - global_batch_size % parts
    return [size for size in (below, below + parts) if size > 0]
