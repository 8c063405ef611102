"""Loaders whose ranks hold data that do not belong together are refused by name; shards of one's own are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lrrunner.library.loaders.loader_agreement import _loader_data, agreement_errors
from lrrunner.training.collectives import SerialCollective


class World(SerialCollective):
    """Rank 0 beside a rank 1 that has another loader."""

    world_size = 2

    def __init__(self, other: Any) -> None:
        self._other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, _loader_data(self._other)]


def samples(number: int = 64, *, first: int = 0) -> TensorDataset:
    """Numbered samples."""
    return TensorDataset(torch.arange(first, first + number))


def sharded(data: TensorDataset, *, rank: int) -> DataLoader[Any]:
    """With torch's sampler."""
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=rank)
    return DataLoader(data, batch_size=4, sampler=sampler)


def prepared(data: TensorDataset, *, rank: int) -> DataLoader[Any]:
    """As Accelerate prepares it."""
    batches = BatchSampler(RandomSampler(data), batch_size=4, drop_last=False)
    return DataLoaderShard(data, batch_sampler=BatchSamplerShard(batches, num_processes=2, process_index=rank))


def plain(data: TensorDataset, *, rank: int) -> DataLoader[Any]:
    """Without any sharding."""
    return DataLoader(data, batch_size=4, shuffle=True)


def errors(make: Any, first: TensorDataset, second: TensorDataset, **options: Any) -> list[str]:
    """The refusals for two ranks with these data."""
    return agreement_errors(World(make(second, rank=1)), make(first, rank=0), **options)


@pytest.mark.parametrize("make", [sharded, prepared])
def test_a_sampler_that_splits_needs_one_data_set(make: Any) -> None:
    """Shards of 512 and 448 samples come from different permutations: some samples twice, others never."""
    assert errors(make, samples(), samples()) == []
    assert errors(make, samples(64), samples(56)) == [
        "train_loader must read one data set on all ranks, since its sampler splits it by rank, got 64 on rank 0, 56 "
        "on rank 1 samples; let every rank read the whole data set"
    ]
    (other,) = errors(make, samples(), samples(first=100), name="val_loader")
    assert other.startswith(
        "val_loader must read the same samples in the same order on all ranks, since its sampler splits them by rank, "
        "got others on rank 1; "
    )


def test_shards_of_ones_own_may_differ_but_not_in_their_number_of_batches() -> None:
    """A data set for each rank is a legitimate way to shard; 65 and 64 samples in 17 and 16 batches are not."""
    assert errors(plain, samples(), samples(first=64)) == []
    assert errors(plain, samples(64), samples(63, first=64)) == []
    assert errors(plain, samples(64), samples(56), name="val_loader") == []
    assert errors(plain, samples(64), samples(56)) == [
        "train_loader must give as many batches on every rank, got data sets of 64 on rank 0, 56 on rank 1 samples; "
        "give every rank the whole data set and a DistributedSampler, or shards of one length"
    ]


class Stream(IterableDataset[Any]):
    """Without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_what_cannot_be_compared_is_exempt() -> None:
    """Iterable data, lists of batches, loaders that rank 0 alone reads, and one rank."""
    assert agreement_errors(World(DataLoader(Stream())), DataLoader(samples())) == []
    assert agreement_errors(World([1, 2]), [1]) == []
    assert agreement_errors(World(None), None) == []
    assert _loader_data(DataLoaderDispatcher(samples())) is None
    assert agreement_errors(SerialCollective(), plain(samples(), rank=0)) == []


class Broken(TensorDataset):
    """A data set that cannot say how long it is."""

    def __len__(self) -> int:
        raise NotImplementedError


def test_a_length_that_raises_is_exempt() -> None:
    """A rank that failed here alone would leave the others waiting."""
    loader = DataLoader(Broken(torch.arange(3)), sampler=[0, 1])
    assert agreement_errors(World(loader), loader) == []
