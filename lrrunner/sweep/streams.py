"""Iterable data sets: every reader goes through the same stream of samples and keeps its own share of it.

A stream has no indices, so it is cut by position: into global batches first, and these into the micro-batches of ranks,
accumulation steps and loader workers, as the batch plan cuts the order of an epoch. Nothing communicates. Ranks restart
together, since each of them sees where the stream ends, and drops the tail that does not fill a global batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker as loader_worker

from lrrunner.core.batch_plan import EVALUATION_DATA_ORDER
from lrrunner.training.state.snapshot import RngState, seed_rngs

CPU = torch.device("cpu")


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be iterated."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


@dataclass(frozen=True, kw_only=True)
class BatchSplit:
    """How a global batch is split, and which part is this rank's."""

    rank: int
    world_size: int
    accumulation_steps: int
    micro_batch_size: int

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.world_size * self.accumulation_steps * self.micro_batch_size


class StreamPass:
    """One pass over an iterable data set, with random numbers of its own: the same ones for every reader.

    The data set is read as by a single process: it must not split itself over loader workers.

    Args:
        dataset: Can be iterated; ``set_epoch`` is called if it has one.
        entropy: Seeds its random numbers.
        epoch: Number for ``set_epoch``.
    """

    def __init__(self, dataset: Any, *entropy: int, epoch: int = 0) -> None:
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        self._rng: RngState | None = None
        self._entropy = entropy
        with self._reading():
            self._samples = iter(dataset)

    def read(self, num_samples: int, *, keep: Callable[[int], bool] = lambda position: True) -> tuple[list[Any], int]:
        """Read on.

        Args:
            num_samples: How many samples to read at most.
            keep: Whether to keep the n-th of them.

        Returns:
            Those that were kept, and the number of those that were read; fewer at the end of the stream.
        """
        kept, position = [], 0
        with self._reading():
            for position, sample in enumerate(itertools.islice(self._samples, num_samples), start=1):
                if keep(position - 1):
                    kept.append(sample)
        return kept, position

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Exchange the random numbers of this process for those of the stream, and hide the loader worker from it."""
        outside, worker = RngState.capture(CPU), loader_worker._worker_info
        if self._rng is None:
            seed_rngs(*self._entropy)
        else:
            self._rng.restore(CPU)
        loader_worker._worker_info = None
        try:
            yield
        finally:
            loader_worker._worker_info = worker
            self._rng = RngState.capture(CPU)
            outside.restore(CPU)


class StreamShard(IterableDataset[Any]):
    """The samples of this rank, in its loader worker's micro-batches: endless, each epoch another pass.

    Args:
        dataset: Iterable data set, the same on every rank.
        split: Which samples of a global batch are this rank's.
        seed: Seed of the sweep.
        repeat: Number of the data order.
        first_step: Optimizer steps to leave out.
    """

    def __init__(self, dataset: Any, split: BatchSplit, *, seed: int, repeat: int, first_step: int = 0) -> None:
        self._dataset, self._split, self._seed, self._repeat = dataset, split, seed, repeat
        self._first_step = first_step

    def __iter__(self) -> Iterator[Any]:
        """Yield samples.

        Raises:
            ValueError: a pass does not fill one global batch.
        """
        step, size = 0, self._split.global_batch_size
        for epoch in itertools.count():
            samples = StreamPass(self._dataset, self._seed, self._repeat, epoch, epoch=self._repeat + epoch)
            is_empty = True
            while True:
                kept, num_read = samples.read(size, keep=self._share(step))
                if num_read < size:
                    break
                is_empty = False
                if step >= self._first_step:
                    yield from kept
                step += 1
            if is_empty:
                raise ValueError(
                    f"data.train must give at least one global batch of {size} samples each time it is iterated, got "
                    f"{num_read} in epoch {epoch}; lower data.global_batch_size"
                )

    def _share(self, step: int) -> Callable[[int], bool]:
        """Whether a position in the global batch of a step belongs to this rank and loader worker."""
        split, worker = self._split, get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)

        def keep(position: int) -> bool:
            accumulation_step, rank = divmod(position // split.micro_batch_size, split.world_size)
            micro_batch = step * split.accumulation_steps + accumulation_step
            return rank == split.rank and micro_batch % num_workers == number

        return keep


class StreamEvaluation:
    """The first samples of a stream, in batches of this rank, with the number of samples that each counts for.

    Args:
        dataset: Iterable data set, the same on every rank.
        num_samples: Samples to read, over all ranks; the stream must hold them.
        split: Size of a batch, and which are this rank's.
        seed: Seed of the sweep.
        collate: Makes a batch from a list of samples.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        num_samples: int,
        split: BatchSplit,
        seed: int,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self._dataset, self._num_samples, self._split, self._seed = dataset, num_samples, split, seed
        self._collate = collate

    def __call__(self) -> Iterator[tuple[Any, int]]:
        """Yield batches; every rank gets the same number, and one that has no samples left repeats one with weight 0.

        Raises:
            ValueError: the stream has become shorter.
        """
        split = self._split
        samples = StreamPass(self._dataset, self._seed, EVALUATION_DATA_ORDER)
        for start in range(0, self._num_samples, split.world_size * split.micro_batch_size):
            wanted = min(split.world_size * split.micro_batch_size, self._num_samples - start)
            kept, num_read = samples.read(wanted, keep=lambda i: i == 0 or i % split.world_size == split.rank)
            if num_read < wanted:
                raise ValueError(
                    f"the data set of evaluations gave {self._num_samples} samples at first and {start + num_read} "
                    "now; it must give the same ones each time it is iterated"
                )
            own = kept if split.rank == 0 else kept[1:]
            yield self._collate(own or kept), len(own)


def num_in_stream(dataset: Any, *, at_most: int, seed: int) -> int:
    """Samples that an evaluation can read from a stream."""
    return StreamPass(dataset, seed, EVALUATION_DATA_ORDER).read(at_most, keep=lambda position: False)[1]
