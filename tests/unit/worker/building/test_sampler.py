"""What ``data.sampler`` gives becomes an order of each epoch that is a pure function, or is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lrrunner.core.batch_plan import EpochOrder
from lrrunner.tasks.samplers import class_balanced
from lrrunner.training.state.snapshot import seed_rngs
from lrrunner.worker.building.sampler import sample_order

SIZE = 40


def dataset() -> TensorDataset:
    labels = torch.zeros(SIZE, dtype=torch.int64)
    labels[:4] = 1
    return TensorDataset(torch.arange(float(SIZE)), labels)


def order_of(made: Any) -> EpochOrder:
    return sample_order(made, dataset(), global_batch_size=8, seed=3)


def epochs(order: EpochOrder, *, repeat: int = 0, number: int = 3) -> list[list[int]]:
    return [order(dataset_size=SIZE, seed=3, repeat=repeat, epoch=epoch).tolist() for epoch in range(number)]


class Own(Sampler[int]):
    """Draws from a generator of its own, and counts what it has given."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.num_given = generator, 0

    def __iter__(self) -> Iterator[int]:
        while True:  # endless
            self.num_given += 1
            drawn = self.generator
            yield int(drawn.integers(SIZE) if hasattr(drawn, "integers") else drawn.randrange(SIZE))


class ByEpoch(Sampler[int]):
    """Shuffles by its epoch alone."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.epoch).permutation(SIZE)


SAMPLERS: dict[str, Any] = {
    "random": lambda: RandomSampler(dataset()),
    "with replacement": lambda: RandomSampler(dataset(), replacement=True, num_samples=100),
    "own generator": lambda: RandomSampler(dataset(), generator=torch.Generator()),
    "weighted": lambda: WeightedRandomSampler(class_balanced(dataset()).tolist(), 60),
    "subset": lambda: SubsetRandomSampler(range(10, 30)),
    "numpy's generator": lambda: Own(np.random.default_rng()),
    "Python's generator": lambda: Own(random.Random()),
    "by epoch": ByEpoch,
    "weights": lambda: class_balanced(dataset()),
    "a tensor of weights": lambda: torch.rand(SIZE),
    "indices": lambda: list(range(20)) * 2,
}


@pytest.mark.parametrize("made", SAMPLERS.values(), ids=list(SAMPLERS))
def test_every_epoch_and_repeat_has_an_order_of_its_own_whenever_it_is_asked_for(made: Any) -> None:
    """Resume enters in the middle, ranks draw on their own, and training's random numbers are not theirs."""
    torch.manual_seed(0)
    order = order_of(made())
    seed_rngs(8)
    before = torch.get_rng_state()
    found = epochs(order)
    assert torch.equal(torch.get_rng_state(), before)
    seed_rngs(9)
    assert order(dataset_size=SIZE, seed=3, repeat=0, epoch=1).tolist() == found[1]
    assert epochs(order) == found
    assert len({tuple(epoch) for epoch in found}) == 3
    assert epochs(order, repeat=1, number=1) != found[:1]


def test_a_sampler_gives_the_indices_that_it_draws() -> None:
    """In its own order, as many as its length, or one for each sample where it has none."""
    assert epochs(order_of(SequentialSampler(dataset()))) == [list(range(SIZE))] * 3
    assert [len(epoch) for epoch in epochs(order_of(RandomSampler(dataset(), replacement=True, num_samples=99)))] == [
        99
    ] * 3
    assert len(epochs(order_of(Own(random.Random(0))))[0]) == SIZE


def test_class_balanced_weights_draw_a_rare_class_as_often_as_a_frequent_one() -> None:
    """Four of forty samples belong to one of two classes."""
    weights = class_balanced(dataset())
    assert weights[:4].sum() == pytest.approx(weights[4:].sum())
    drawn = np.concatenate(epochs(order_of(weights), number=100))
    assert (drawn < 4).mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(class_balanced(Subset(dataset(), [0, 1, 5, 6])), [0.5] * 4)
    with pytest.raises(
        ValueError, match="TensorDataset must say one label per sample in an attribute targets or labels, got"
    ):
        class_balanced(TensorDataset(torch.zeros(4, 2)))


REFUSED: dict[str, Any] = {
    "must give one weight for each of the 40 samples of data.train, got 39;": lambda: torch.ones(39),
    "finite and none below 0, got -1 for sample 3; give it 0": lambda: np.where(np.arange(SIZE) == 3, -1.0, 1.0),
    "finite and none below 0, got nan for sample 0": lambda: np.full(SIZE, np.nan),
    "some above 0, got zeros only": lambda: np.zeros(SIZE),
    "must give indices from 0 to 39, the samples of data.train, got 40;": lambda: [*range(30), 40],
    "must give indices from 0 to 39, the samples of data.train, got -1; ": lambda: SubsetRandomSampler([-1] * 20),
    "at least one global batch of 8 samples in each epoch, got 7 in epoch 0; draw more": lambda: SubsetRandomSampler(
        range(7)
    ),
    "got a DistributedSampler, which gives a rank's share": lambda: DistributedSampler(dataset(), 2, 0),
    "got a BatchSampler; lrrunner cuts the batches": lambda: BatchSampler(SequentialSampler(dataset()), 4, False),
    "got a sampler of list; give indices, one at a time": lambda: ByBatch(),
    "got generator; give an object that can be iterated once for each epoch": lambda: iter(i for i in range(SIZE)),
    "got NoneType; give an object that": lambda: None,
    "got an array of bool of shape (40,)": lambda: np.ones(SIZE, dtype=bool),
    "got an array of float64 of shape (40, 2)": lambda: np.ones((SIZE, 2)),
    "must give the same order for the same random numbers, got two different ones": lambda: Unseeded(),
}


class ByBatch(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield [1, 2]


class Unseeded(Sampler[int]):
    """Draws from the system."""

    def __iter__(self) -> Iterator[int]:
        yield from (random.SystemRandom().randrange(SIZE) for _ in range(SIZE))


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_sharded_is_refused(message: str) -> None:
    """With the value and the way out."""
    with pytest.raises(ValueError, match=r"^data\.sampler must give") as caught:
        order_of(REFUSED[message]())
    assert message in str(caught.value)
