"""The batches of a rank are those of the plan, wherever it starts to read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from lrrunner.config.schema import Config
from lrrunner.sweep.data_loading import Datasets, RankBatches
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.state.snapshot import seed_rngs
from tests.composing import composed


class Numbers(Dataset[Any]):
    """Its samples are their own numbers, plus a shift, with noise from the generator of the process that reads them."""

    def __init__(self, size: int, *, shift: int = 0) -> None:
        self.size, self.shift = size, shift

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, float]:
        return self.shift + index, torch.rand(()).item()


def job(*overrides: str) -> Config:
    return composed(
        "data.global_batch_size=4", "train.accumulation_steps=2", "data.dataloader.pin_memory=false", *overrides
    )


def rank_batches(settings: Config, *, validation: int | None = None) -> RankBatches:
    held_out = None if validation is None else Numbers(validation, shift=100)
    datasets = Datasets(train=Numbers(10), num_samples=10, validation=held_out)
    return RankBatches(datasets, settings, collective=SerialCollective())


def first(batches: Any, count: int) -> list[Any]:
    return [[field.tolist() for field in batch] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_from_a_later_step_gives_the_batches_of_that_step(num_workers: int) -> None:
    """Order and, where workers draw random numbers of their own, these, too; else a resumed sweep trains on others."""
    batches = rank_batches(job(f"data.dataloader.num_workers={num_workers}"))
    seed_rngs(0)
    whole = first(batches(1), 8)
    seed_rngs(0)
    resumed = first(batches(1, 3), 2)
    assert [numbers for numbers, _ in resumed] == [numbers for numbers, _ in whole[6:]]
    if num_workers:
        assert resumed == whole[6:]
    assert len({number for numbers, _ in whole[:4] for number in numbers}) == 8, "an epoch repeats no sample"
    assert first(batches(2), 1) != whole[:1]


def weights(read: Sequence[tuple[Any, int]]) -> list[int]:
    return [weight for _, weight in read]


def test_an_evaluation_reads_the_same_samples_each_time_from_the_validation_set_if_there_is_one() -> None:
    """Trials are compared on them; the last batch counts for the samples that it holds."""
    read = rank_batches(job(), validation=7).evaluation(num_samples=5)
    once, again = list(read()), list(read())
    assert weights(once) == weights(again) == [2, 2, 1]
    numbers = [batch[0].tolist() for batch, _ in once]
    assert numbers == [batch[0].tolist() for batch, _ in again]
    assert all(100 <= number < 107 for number in itertools.chain.from_iterable(numbers))


def test_without_a_validation_set_a_part_of_the_training_set_is_evaluated() -> None:
    """As confirmation runs do."""
    batches = rank_batches(job())
    assert batches.num_evaluation_samples == 10
    numbers = list(
        itertools.chain.from_iterable(batch[0].tolist() for batch, _ in batches.evaluation(num_samples=50)())
    )
    assert sorted(numbers) == list(range(10))


def test_an_epoch_is_as_many_steps_as_there_are_whole_global_batches() -> None:
    """What a training of unknown length is counted in: ten samples are two batches of four."""
    assert rank_batches(job()).epoch_steps == 2
