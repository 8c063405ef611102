"""DataLoaders over the batches that the batch plan assigns to this rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lrrunner.config.schema import Config
from lrrunner.core.batch_plan import BatchPlan, EpochOrder, epoch_order, evaluation_batches, micro_batches
from lrrunner.records import Step, Stop
from lrrunner.sweep.evaluators import WeightedBatches, num_evaluated
from lrrunner.sweep.streams import BatchSplit, StreamEvaluation, StreamShard, is_stream, num_in_stream
from lrrunner.training.collectives import Collective

MAX_LOCATED_RANKS, MAX_LOCATED_SAMPLES = 2, 64
"""How many are named in a message."""


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """The data sets of a job.

    Attributes:
        train: Data set of the training samples, map-style or iterable.
        num_samples: Samples in ``train``; None if it is iterable.
        order: Chooses the samples of each epoch; a shuffle of all by default.
        validation: Data set of evaluations; None evaluates a part of ``train``.
        collate_fn: Makes a batch from a list of samples; None is torch's default.
    """

    train: Dataset[Any]
    num_samples: int | None
    order: EpochOrder = epoch_order
    validation: Dataset[Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None


class RankBatches:
    """Batches of this rank; calling it yields training batches, as :class:`lrrunner.training.trainable.Batches` says.

    Args:
        datasets: What is read.
        job: Batch size, accumulation, seed and options of the loaders.
        collective: The world this rank belongs to.
    """

    def __init__(self, datasets: Datasets, job: Config, *, collective: Collective) -> None:
        self._datasets, self._options, self._seed = datasets, job.data.dataloader, job.sweep.seed
        self._evaluated: Any = datasets.train if datasets.validation is None else datasets.validation
        self._collective, self._num_monitored = collective, job.sweep.val_batches
        self._global_batch_size, steps = job.data.global_batch_size, job.train.accumulation_steps
        self._split = BatchSplit(
            rank=collective.rank,
            world_size=collective.world_size,
            accumulation_steps=steps,
            micro_batch_size=job.data.global_batch_size // (collective.world_size * steps),
        )
        self._plan: BatchPlan | None = None
        if datasets.num_samples is not None:
            self._plan = BatchPlan(
                dataset_size=datasets.num_samples,
                global_batch_size=job.data.global_batch_size,
                world_size=collective.world_size,
                accumulation_steps=steps,
                order=datasets.order,
            )

    @property
    def epoch_steps(self) -> int | None:
        """Whole global batches of one epoch; None if the data set is iterable."""
        return None if self._plan is None else self._plan.dataset_size // self._global_batch_size

    @property
    def num_evaluation_samples(self) -> int | None:
        """Samples in the data set of evaluations; None if it is iterable."""
        return None if is_stream(self._evaluated) else len(self._evaluated)

    def __call__(self, repeat: int, first_step: int = 0) -> Iterator[Any]:
        """Yield endless micro-batches of one repeat, from optimizer step ``first_step`` on.

        Loader workers have random number generators of their own, and only reading the earlier batches advances these.
        """
        if self._options.num_workers == 0:
            return iter(self._train_loader(repeat, first_step))
        num_skipped = first_step * self._split.accumulation_steps
        return itertools.islice(self._train_loader(repeat, 0), num_skipped, None)

    def locate(self, stop: Stop, steps: Sequence[Step]) -> str:
        """Which samples of the training set the ranks of a stop were at, as text; empty if no rank is known.

        Samples of an iterable data set have no numbers; those of an evaluation are not of the training set.
        """
        if self._plan is None or stop.in_evaluation:
            return ""
        position = sum(step.repeat == stop.repeat for step in steps) - 1  # a skipped step has read its batches, too
        found = []
        for rank in stop.ranks[:MAX_LOCATED_RANKS]:
            stream = micro_batches(
                self._plan, seed=self._seed, repeat=stop.repeat, rank=rank, first_step=max(position, 0)
            )
            indices = list(itertools.chain.from_iterable(itertools.islice(stream, self._plan.accumulation_steps)))
            shown = ", ".join(map(str, indices[:MAX_LOCATED_SAMPLES]))
            more = f" and {len(indices) - MAX_LOCATED_SAMPLES} more" if len(indices) > MAX_LOCATED_SAMPLES else ""
            found.append(f"rank {rank} was at samples {shown}{more} of data.train")
        return "".join(f"; {text}" for text in found)

    def monitored(self) -> WeightedBatches:
        """``sweep.val_batches`` whole global batches of the validation set, or as many as it holds."""
        batch_size, num_batches = self._global_batch_size, self._num_monitored
        if (available := self.num_evaluation_samples) is not None:
            num_batches = min(num_batches, available // batch_size)
        return self.evaluation(num_samples=num_batches * batch_size)

    def compared(self) -> WeightedBatches:
        """The samples that trials are compared on."""
        steps = self._split.accumulation_steps
        return self.evaluation(num_samples=num_evaluated(self._global_batch_size, accumulation_steps=steps))

    def evaluation(self, *, num_samples: int) -> WeightedBatches:
        """Choose a fixed random part of the data set of evaluations, the same for every world size.

        Of an iterable data set, the part is its first samples.

        Args:
            num_samples: Samples to choose at most, over all ranks.

        Every rank must call this.

        Returns:
            Function that reads this rank's share: batches, and the number of samples that each counts for.
        """
        if self.num_evaluation_samples is None:
            return self._stream_evaluation(num_samples)
        share = evaluation_batches(
            dataset_size=self.num_evaluation_samples,
            num_samples=num_samples,
            batch_size=self._split.micro_batch_size,
            world_size=self._split.world_size,
            rank=self._split.rank,
            seed=self._seed,
        )
        indices, weights = [batch for batch, _ in share], [weight for _, weight in share]
        return lambda: zip(self._loader(self._evaluated, batch_sampler=indices), weights, strict=True)

    def _stream_evaluation(self, num_samples: int) -> StreamEvaluation:
        """The first samples of an iterable data set, in whole batches if it fills one. Every rank must call this."""
        own = num_in_stream(self._evaluated, at_most=num_samples, seed=self._seed)
        available = min(self._collective.gather(own))
        batch_size = self._split.world_size * self._split.micro_batch_size
        return StreamEvaluation(
            self._evaluated,
            num_samples=available - available % batch_size if available > batch_size else available,
            split=self._split,
            seed=self._seed,
            collate=self._datasets.collate_fn or default_collate,
        )

    def _train_loader(self, repeat: int, first_step: int) -> DataLoader[Any]:
        train, persistent = self._datasets.train, self._options.persistent_workers
        if self._plan is None:
            shard = StreamShard(train, self._split, seed=self._seed, repeat=repeat, first_step=first_step)
            return self._loader(shard, batch_size=self._split.micro_batch_size, persistent_workers=persistent)
        sampler = _BatchSampler(
            self._plan, seed=self._seed, repeat=repeat, rank=self._split.rank, first_step=first_step
        )
        return self._loader(train, batch_sampler=sampler, persistent_workers=persistent)

    def _loader(self, dataset: Dataset[Any], *, persistent_workers: bool = False, **batching: Any) -> DataLoader[Any]:
        options = self._options
        return DataLoader(
            dataset,
            collate_fn=self._datasets.collate_fn,
            num_workers=options.num_workers,
            pin_memory=torch.cuda.is_available() if options.pin_memory is None else options.pin_memory,
            persistent_workers=persistent_workers,
            prefetch_factor=options.prefetch_factor,
            **batching,
        )


class _BatchSampler:
    """The endless index lists of one repeat."""

    def __init__(self, plan: BatchPlan, *, seed: int, repeat: int, rank: int, first_step: int) -> None:
        self._plan, self._seed, self._repeat, self._rank, self._first_step = plan, seed, repeat, rank, first_step

    def __iter__(self) -> Iterator[list[int]]:
        return micro_batches(
            self._plan, seed=self._seed, repeat=self._repeat, rank=self._rank, first_step=self._first_step
        )
