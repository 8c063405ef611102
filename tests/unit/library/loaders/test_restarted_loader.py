"""A user's loader is read from its start as often as needed, and does not change."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lrrunner.library.loaders.restarted_loader import RestartedLoader, loader_errors, twin
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.state.snapshot import seed_rngs
from tests.multiprocess.trainings import forget_accelerate

DATA = TensorDataset(torch.arange(12))


class InPlaceShuffle(Sampler[int]):
    """Shuffles a list of its own each time, as many samplers do."""

    def __init__(self) -> None:
        self.order = list(range(12))

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.order)
        return iter(self.order)

    def __len__(self) -> int:
        return 12


def read(loader: Any, num_batches: int, *, repeat: int = 0, seed: int = 0) -> list[list[int]]:
    """The first batches of a repeat, with random numbers as the engine seeds them."""
    seed_rngs(seed, repeat, 0)
    batches = RestartedLoader(loader, collective=SerialCollective(), seed=seed)(repeat)
    return [batch[0].tolist() for batch in itertools.islice(batches, num_batches)]


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(7)])
def test_short_datasets_restart_in_another_order_and_repeats_differ(generator: torch.Generator | None) -> None:
    """Row 26: three epochs of three batches, each a permutation; the same repeat reads the same again."""
    loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=generator)
    first = read(loader, 9)
    epochs = [list(itertools.chain(*first[i : i + 3])) for i in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert epochs[0] != epochs[1]
    assert read(loader, 9) == first
    assert read(loader, 9, repeat=1) != first
    assert read(loader, 9, seed=1) != first


def test_a_generator_keeps_its_state() -> None:
    """Row 16: the next epoch of the training has the order it would have had."""
    loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(7))
    epochs = iter(loader)
    next(epochs)
    before = loader.generator.get_state()
    read(loader, 9)
    assert torch.equal(loader.generator.get_state(), before)
    assert sum(batch[0].numel() for batch in epochs) == 8


def test_a_sampler_that_shuffles_in_place_keeps_its_list() -> None:
    """The sampler is copied, its dataset is not."""
    sampler = InPlaceShuffle()
    loader = DataLoader(DATA, batch_size=4, sampler=sampler)
    assert list(itertools.chain(*read(loader, 3))) != list(range(12))
    assert sampler.order == list(range(12))


def test_a_distributed_sampler_goes_through_epochs_and_back() -> None:
    """Without Accelerate, a script sets epochs itself."""
    sampler: DistributedSampler[Any] = DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=True)
    sampler.set_epoch(5)
    loader = DataLoader(DATA, batch_size=3, sampler=sampler)
    first = read(loader, 4)
    expected = []
    for epoch in (5, 6):
        sampler.set_epoch(epoch)
        expected += [batch[0].tolist() for batch in loader]
    assert first == expected
    sampler.set_epoch(5)
    read(loader, 4)
    assert sampler.epoch == 5


class SeededCollator:
    """Draws from a generator of its own, as DataCollatorForLanguageModeling(seed=...) does."""

    def __init__(self, **attributes: Any) -> None:
        self.generator = torch.Generator().manual_seed(7)
        vars(self).update(attributes)

    def __call__(self, samples: list[Any]) -> list[torch.Tensor]:
        return [torch.rand(1, generator=self.generator)]


def test_a_collator_with_a_generator_keeps_its_state() -> None:
    """Its dataset is not copied with it; a collator that cannot be copied is shared."""
    data = Subset(DATA, range(12))
    collator = SeededCollator(data=DATA)
    loader = DataLoader(data, batch_size=4, collate_fn=collator)
    first, state = read(loader, 3), collator.generator.get_state()
    assert read(loader, 3) == first
    assert torch.equal(collator.generator.get_state(), state)
    copied: Any = twin(loader).collate_fn
    assert copied is not collator
    assert copied.data is DATA
    stubborn = SeededCollator(once=(i for i in range(3)))
    assert len(read(DataLoader(DATA, batch_size=4, collate_fn=stubborn), 4)) == 4


def test_a_length_that_raises_is_unknown() -> None:
    """A rank that failed here alone would leave the others waiting."""

    class Lazy:
        def __iter__(self) -> Iterator[Any]:
            return iter([(torch.tensor([1]),)])

        def __len__(self) -> int:
            raise NotImplementedError

    assert loader_errors(Lazy()) == []
    assert read(Lazy(), 2) == [[1], [1]]


def test_persistent_workers_continue_the_epoch_of_the_training() -> None:
    """A second iteration of such a loader would reset the first one."""
    loader = DataLoader(DATA, batch_size=4, num_workers=1, persistent_workers=True)
    training = iter(loader)
    seen = [next(training)[0].tolist()]
    assert read(loader, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
    assert seen + [batch[0].tolist() for batch in training] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    del training
    loader._iterator = None


class Stream(IterableDataset[Any]):
    """An iterable dataset without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter((torch.tensor(i),) for i in range(6))


def test_iterable_datasets_and_plain_lists_restart() -> None:
    """Anything that can be iterated twice."""
    assert read(DataLoader(Stream(), batch_size=4), 3) == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3]]
    assert read([(torch.tensor([1]),), (torch.tensor([2]),)], 3) == [[1], [2], [1]]


def test_loaders_that_cannot_be_restarted_or_copied_are_refused() -> None:
    """Before the first step, with what to do."""

    class OneShot(InPlaceShuffle):
        def __init__(self) -> None:
            super().__init__()
            self.once = (i for i in range(3))

    for loader, message in (
        (iter([1]), "must start again when it is iterated again, got list_iterator"),
        (3, "must be an iterable of batches, got int"),
        (DATA, "must give batches, got the data set TensorDataset, which gives samples; give DataLoader(train_loader"),
        ([], "must give batches, got list of length 0"),
        (DataLoader(DATA, sampler=OneShot()), "must have samplers that can be copied, got TypeError"),
    ):
        (error,) = loader_errors(loader)
        assert error.startswith("train_loader ")
        assert message in error
    assert loader_errors(DataLoader(DATA)) == []


def test_an_empty_loader_is_no_endless_loop() -> None:
    """An iterable dataset shows that it is empty only when it is read."""
    with pytest.raises(ValueError, match="train_loader must give batches each time it is iterated, got none"):
        read(DataLoader(torch.utils.data.ChainDataset([]), batch_size=2), 1)


def test_reading_a_twin_does_not_enter_accelerates_list_of_active_loaders() -> None:
    """``Accelerator.accumulate`` and ``gather_for_metrics`` ask the active loader whether its epoch ends."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(DATA, batch_size=4))
    try:
        training = iter(loader)
        next(training)
        batches = iter(twin(loader))
        next(batches)
        assert GradientState().active_dataloader is loader
        assert len(GradientState().dataloader_references) == 2
        assert sum(1 for _ in batches) == 2
        assert sum(1 for _ in training) == 2
        assert GradientState().active_dataloader is None
    finally:
        forget_accelerate()
