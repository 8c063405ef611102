"""Iterable data sets are cut by position: every reader sees the same stream and keeps its own share."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from lrrunner.sweep.data_loading import Datasets, RankBatches
from lrrunner.sweep.streams import BatchSplit, StreamEvaluation, StreamShard
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.state.snapshot import seed_rngs
from tests.composing import composed


class Numbers(IterableDataset[Any]):
    """0, 1, 2, ... or an order drawn from all generators of the process; split over loader workers as torch advises."""

    def __init__(self, size: int, *, shuffled: bool = False, shift: int = 0) -> None:
        self.size, self.shuffled, self.shift = size, shuffled, shift
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        if self.shuffled:
            random.shuffle(order)
            order = [order[i] for i in np.random.permutation(self.size)]
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in order[first::every]:
            if self.shuffled:
                torch.rand(())  # an augmentation
            yield self.shift + number


class Rank(SerialCollective):
    """One of several ranks, all of which report the same."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world_size


def rank_batches(
    train: Any, *overrides: str, rank: int = 0, world_size: int = 1, validation: Any = None, global_batch_size: int = 12
) -> RankBatches:
    job = composed(f"data.global_batch_size={global_batch_size}", *overrides, world_size=world_size)
    datasets = Datasets(train=train, num_samples=None, validation=validation)
    return RankBatches(datasets, job, collective=Rank(rank, world_size))


def first(batches: Iterator[Any], count: int) -> list[list[int]]:
    return [batch.tolist() for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("world_size", "steps"), [(1, 1), (2, 1), (3, 2), (2, 3)])
def test_the_global_batch_of_a_step_is_the_same_however_it_is_split(
    world_size: int, steps: int, shuffled: bool
) -> None:
    """No sample is seen twice in a pass, and none is lost but the tail; ranks restart together, without telling."""
    whole = first(rank_batches(Numbers(40, shuffled=shuffled))(0), 7)
    ranks = []
    for rank in range(world_size):
        seed_rngs(rank)  # ranks train with different random numbers
        batches = rank_batches(
            Numbers(40, shuffled=shuffled), f"train.accumulation_steps={steps}", rank=rank, world_size=world_size
        )
        ranks.append(first(batches(0), 7 * steps))
    for step, expected in enumerate(whole):
        parts = [ranks[rank][step * steps + i] for i in range(steps) for rank in range(world_size)]
        assert [number for part in parts for number in part] == expected
    assert len({number for batch in whole[:3] for number in batch}) == 36
    assert (whole[3] == whole[0]) == (not shuffled), "another epoch, another order"


def test_loader_workers_split_the_stream_once(recwarn: Any) -> None:
    """A data set that splits itself by worker, as torch's documentation advises, is not split again."""
    workers = "data.dataloader.num_workers=2"
    pinned = "data.dataloader.pin_memory=false"
    alone = first(rank_batches(Numbers(40, shuffled=True), pinned)(0), 7)
    assert first(rank_batches(Numbers(40, shuffled=True), pinned, workers)(0), 7) == alone
    assert first(rank_batches(Numbers(40, shuffled=True), pinned, workers)(0, 4), 3) == alone[4:]
    assert first(rank_batches(Numbers(40, shuffled=True), pinned)(0, 4), 3) == alone[4:]


def test_the_random_numbers_of_the_stream_are_not_those_of_training() -> None:
    """Otherwise dropout would depend on how many samples a rank reads for others."""
    batches = rank_batches(Numbers(40, shuffled=True))(1)
    seed_rngs(5)
    expected = (torch.rand(3).tolist(), random.random(), np.random.random())
    seed_rngs(5)
    first(batches, 4)
    assert (torch.rand(3).tolist(), random.random(), np.random.random()) == expected


def test_repeats_have_orders_of_their_own_and_a_data_set_learns_its_epoch() -> None:
    """Streaming data sets shuffle by their epoch."""
    train = Numbers(24, shuffled=True)
    batches = rank_batches(train)
    assert first(batches(0), 2) != first(batches(1), 2)
    train.epochs.clear()
    first(batches(1), 5)
    assert train.epochs == [1, 2, 3]


def test_a_pass_without_one_global_batch_is_an_error() -> None:
    """A stream that has become shorter would be asked for more for ever."""
    split = BatchSplit(rank=0, world_size=2, accumulation_steps=1, micro_batch_size=4)
    with pytest.raises(ValueError, match=r"^data\.train must give at least one global batch of 8 .*, got 7 in epoch 0"):
        next(iter(StreamShard(Numbers(7), split, seed=0, repeat=0)))


def test_evaluations_read_the_first_samples_in_equal_numbers_of_batches() -> None:
    """Ranks reduce after each batch, so that one with fewer would leave the others waiting."""
    shares = [
        [
            (batch.tolist(), weight)
            for batch, weight in rank_batches(
                Numbers(36), rank=rank, world_size=2, validation=Numbers(5, shift=100), global_batch_size=4
            ).evaluation(num_samples=50)()
        ]
        for rank in (0, 1)
    ]
    assert shares == [[([100, 102], 2)], [([101, 103], 2)]], "whole batches, as far as they go"
    few = [
        list(rank_batches(Numbers(36), rank=rank, world_size=2, validation=Numbers(1)).evaluation(num_samples=50)())
        for rank in (0, 1)
    ]
    assert [[(batch.tolist(), weight) for batch, weight in share] for share in few] == [[([0], 1)], [([0], 0)]]


def test_without_a_validation_set_the_beginning_of_the_training_set_is_evaluated() -> None:
    """Always the same samples, also of a shuffled stream."""
    batches = rank_batches(Numbers(40, shuffled=True))
    assert batches.num_evaluation_samples is None
    read = batches.evaluation(num_samples=24)
    once, again = ([batch.tolist() for batch, _ in read()] for _ in range(2))
    assert once == again
    assert len({number for batch in once for number in batch}) == 24


def test_a_stream_of_evaluations_that_becomes_shorter_is_an_error() -> None:
    """On the rank that notices, instead of a wait on the others."""
    split = BatchSplit(rank=0, world_size=1, accumulation_steps=1, micro_batch_size=4)
    read = StreamEvaluation(Numbers(7), num_samples=8, split=split, seed=0, collate=list)
    with pytest.raises(ValueError, match="gave 8 samples at first and 7 now"):
        list(read())
