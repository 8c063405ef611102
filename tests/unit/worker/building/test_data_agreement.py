"""Ranks that hold other data would cut their shards from different permutations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lrrunner.core.batch_plan import listed_order
from lrrunner.sweep.data_loading import Datasets
from lrrunner.sweep.fingerprint import fingerprint
from lrrunner.training.collectives import SerialCollective
from lrrunner.worker.building.data_agreement import data_errors, order_errors


class World(SerialCollective):
    """This rank beside others that report what is given."""

    def __init__(self, *others: Any) -> None:
        self.world_size = 1 + len(others)
        self._others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *self._others]


def samples(start: int = 0) -> TensorDataset:
    return TensorDataset(torch.arange(start, start + 8.0), torch.arange(8))


class Augmented:
    """Draws from a generator, seeded or not."""

    def __init__(self, *, seeded: bool) -> None:
        self._generator = None if seeded else np.random.default_rng()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        own = random.random() if self._generator is None else self._generator.random()
        return {"x": torch.rand(2), "y": [index, np.float32(own)], "name": "a"}


def test_equal_data_is_fine() -> None:
    """And so are samples that nobody can compare."""
    own = fingerprint(samples())
    assert data_errors(World((8, own), (8, own)), samples(), num_samples=8) == []
    assert data_errors(World((8, own), (8, None)), samples(), num_samples=8) == []
    assert data_errors(World((8, own), (None, None)), samples(), num_samples=8) == []


def test_other_lengths_and_other_samples_name_the_rank() -> None:
    """512 and 448 samples were accepted."""
    own, other = fingerprint(samples()), fingerprint(samples(100))
    (error,) = data_errors(World((8, own), (7, own)), samples(), num_samples=8)
    assert error.startswith(
        "data.train must hold the same samples on every rank, got 8 on rank 0, 8 on rank 1, 7 on rank 2 samples"
    )
    (error,) = data_errors(World((8, own), (8, other)), samples(), num_samples=8)
    assert "got others on rank 2; sort its files" in error


@pytest.mark.parametrize("seeded", [True, False])
def test_augmentation_is_compared_where_it_is_seeded(seeded: bool) -> None:
    """What differs from one time to the next says nothing about other ranks."""
    assert (fingerprint(Augmented(seeded=seeded)) is not None) == seeded


def test_what_has_no_stable_bytes_is_not_compared() -> None:
    """Neither is a data set that cannot be read: it says so where it is."""
    assert fingerprint([object(), object()]) is None
    assert fingerprint([]) is None


class Stream:
    """Random samples, in an order of its own each time."""

    def __init__(self, rank: int = 0) -> None:
        self.num_begun = rank

    def __iter__(self) -> Iterator[Any]:
        self.num_begun += 1
        yield from [torch.rand(2) * self.num_begun] * 8


def test_a_stream_that_splits_itself_by_rank_is_noticed() -> None:
    """Each rank would keep a share of a share. Ranks that begin it equally often agree."""
    own, other = fingerprint(Stream()), fingerprint(Stream(rank=1))
    assert data_errors(World((-1, own)), Stream(), num_samples=None) == []
    assert data_errors(World((None, None)), Stream(), num_samples=None) == []
    (error,) = data_errors(World((-1, other)), Stream(), num_samples=None)
    assert "got others on rank 1; leave its own split by rank out, since lrrunner splits, or draw its order" in error


def test_a_sampler_that_gives_other_indices_on_some_rank_names_it() -> None:
    """Shards of different orders would hold some samples twice."""

    def datasets(first: int) -> Datasets:
        return Datasets(train=samples(), num_samples=8, order=listed_order(np.arange(first, 8)))

    class Recording(World):
        def gather(self, value: Any) -> list[Any]:
            self.own = value
            return super().gather(value)

    other = Recording()
    assert order_errors(other, datasets(1), seed=0) == []
    (error,) = order_errors(World(other.own), datasets(0), seed=0)
    assert error.startswith("data.sampler must give the same indices in the same order on every rank, got others on r")
    assert order_errors(World(other.own), datasets(1), seed=0) == []
    assert order_errors(World(None), datasets(1), seed=0) == []
