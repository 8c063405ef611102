from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.batch_plan import (
    BatchPlan,
    epoch_order,
    evaluation_batches,
    global_batches,
    listed_order,
    micro_batches,
    nearest_global_batch_sizes,
    weighted_order,
)
from tests.unit.core.curves import PROPERTY


def batches(plan: BatchPlan, num_steps: int, *, seed: int = 0, repeat: int = 0, first_step: int = 0) -> list[list[int]]:
    """The first global batches as plain lists, in the order of accumulation step and rank."""
    stream = global_batches(plan, seed=seed, repeat=repeat, first_step=first_step)
    return [batch.ravel().tolist() for batch in islice(stream, num_steps)]


def rank_batches(plan: BatchPlan, num_steps: int, *, rank: int, seed: int = 0) -> list[list[list[int]]]:
    """What one rank trains on: its micro-batches by optimizer step."""
    stream = micro_batches(plan, seed=seed, repeat=0, rank=rank)
    return [list(islice(stream, plan.accumulation_steps)) for _ in range(num_steps)]


def test_micro_batch_is_the_global_batch_over_ranks_and_accumulation_steps() -> None:
    """The suggested LR belongs to the global batch, so the split must multiply back to it."""
    plan = BatchPlan(dataset_size=1000, global_batch_size=64, world_size=2, accumulation_steps=4)
    assert plan.micro_batch_size == 8


def test_steps_per_epoch_drops_the_tail() -> None:
    """23 samples hold five batches of 4; a sixth of 3 would be another batch size within one sweep."""
    first = batches(BatchPlan(dataset_size=23, global_batch_size=4), 6)
    assert [len(batch) for batch in first] == [4] * 6
    assert len({index for batch in first[:5] for index in batch}) == 20
    assert first[5] == epoch_order(dataset_size=23, seed=0, repeat=0, epoch=1)[:4].tolist()


def test_dataset_of_exactly_one_global_batch_is_enough() -> None:
    """The boundary: full-batch training is a legal sweep."""
    assert [sorted(batch) for batch in batches(BatchPlan(dataset_size=8, global_batch_size=8), 2)] == [[*range(8)]] * 2


def test_indivisible_global_batch_is_refused() -> None:
    """Ranks of unequal micro-batches would weigh samples unequally without anyone noticing."""
    with pytest.raises(ValueError, match="global_batch_size=10 is not divisible by 6"):
        BatchPlan(dataset_size=100, global_batch_size=10, world_size=2, accumulation_steps=3)


def test_dataset_smaller_than_a_global_batch_is_refused() -> None:
    """Catalogue row 26: cycling cannot help when no epoch holds even one batch; the message gives both sizes."""
    with pytest.raises(ValueError, match=r"at least one global batch of 8 samples, got 7"):
        BatchPlan(dataset_size=7, global_batch_size=8)


@PROPERTY
@given(
    world_size=st.integers(1, 5),
    accumulation_steps=st.integers(1, 4),
    micro_batch_size=st.integers(1, 4),
    num_batches=st.integers(1, 4),
    tail=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_shards_partition_the_same_global_batch_for_every_split(
    world_size: int, accumulation_steps: int, micro_batch_size: int, num_batches: int, tail: int, seed: int
) -> None:
    """Law 8: same global batch, same curve for any world size; so any split must share out the very same samples."""
    size = world_size * accumulation_steps * micro_batch_size
    dataset_size = size * num_batches + min(tail, size - 1)
    split = BatchPlan(
        dataset_size=dataset_size,
        global_batch_size=size,
        world_size=world_size,
        accumulation_steps=accumulation_steps,
    )
    whole = BatchPlan(dataset_size=dataset_size, global_batch_size=size)
    num_steps = 2 * num_batches + 1
    by_rank = [rank_batches(split, num_steps, rank=rank, seed=seed) for rank in range(world_size)]
    for step, expected in enumerate(batches(whole, num_steps, seed=seed)):
        shards = [micro for rank in range(world_size) for micro in by_rank[rank][step]]
        assert [len(shard) for shard in shards] == [micro_batch_size] * (world_size * accumulation_steps)
        together = [index for shard in shards for index in shard]
        assert len(set(together)) == size
        assert sorted(together) == sorted(expected)


@PROPERTY
@given(dataset_size=st.integers(4, 40), size=st.integers(1, 4), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_no_sample_repeats_within_an_epoch(dataset_size: int, size: int, seed: int, epoch: int) -> None:
    """Catalogue row 26: a short dataset cycles, but one epoch never shows a sample twice nor an index out of range."""
    plan = BatchPlan(dataset_size=dataset_size, global_batch_size=size)
    per_epoch = dataset_size // size
    seen = [i for batch in batches(plan, per_epoch, seed=seed, first_step=epoch * per_epoch) for i in batch]
    assert len(seen) == per_epoch * size
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(dataset_size))


def test_short_dataset_cycles_with_a_new_shuffle() -> None:
    """Catalogue row 26: with zip() the sweep ends with the data; with a fixed order every epoch is the same curve."""
    plan = BatchPlan(dataset_size=32, global_batch_size=8)
    steps = batches(plan, 12)
    epochs = [[i for batch in steps[first : first + 4] for i in batch] for first in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(32))] * 3
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]
    assert epochs[0] != epochs[2]


def test_dropped_tail_changes_from_epoch_to_epoch() -> None:
    """Catalogue row 26: dropping the same tail for ever would hide those samples from the sweep."""
    plan = BatchPlan(dataset_size=11, global_batch_size=4)
    steps = batches(plan, 40)
    dropped = [set(range(11)) - {i for batch in steps[2 * e : 2 * e + 2] for i in batch} for e in range(20)]
    assert [len(tail) for tail in dropped] == [3] * 20
    assert set().union(*dropped) == set(range(11))


def test_batches_are_shuffled() -> None:
    """A dataset sorted by class would otherwise train on one class at a time."""
    assert batches(BatchPlan(dataset_size=100, global_batch_size=100), 1)[0] != list(range(100))


def test_same_seed_and_repeat_give_the_same_batches() -> None:
    """Law 7: order is a pure function, so ranks need no collective to agree and a sweep can be repeated."""
    plan = BatchPlan(dataset_size=50, global_batch_size=5)
    assert batches(plan, 25, seed=7, repeat=1) == batches(plan, 25, seed=7, repeat=1)


@pytest.mark.parametrize(("seed", "repeat"), [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)])
def test_another_seed_or_repeat_gives_another_order(seed: int, repeat: int) -> None:
    """Law 1: repeats average over data order, so their orders must differ, also across seeds."""
    plan = BatchPlan(dataset_size=50, global_batch_size=5)
    assert batches(plan, 10, seed=seed, repeat=repeat) != batches(plan, 10, seed=0, repeat=0)


@PROPERTY
@given(first_step=st.integers(0, 25), seed=st.integers(0, 1000))
def test_resuming_needs_only_a_step_number(first_step: int, seed: int) -> None:
    """Law 7: starting at step k gives what an uninterrupted sweep would have seen from step k on."""
    plan = BatchPlan(dataset_size=23, global_batch_size=4, world_size=2)
    assert batches(plan, 8, seed=seed, first_step=first_step) == batches(plan, first_step + 8, seed=seed)[first_step:]


def test_micro_batches_resume_at_an_optimizer_step_not_at_a_micro_batch() -> None:
    """first_step counts optimizer steps: counting micro-batches would shift the data of every later step."""
    plan = BatchPlan(dataset_size=24, global_batch_size=6, accumulation_steps=3)
    from_start = list(islice(micro_batches(plan, seed=3, repeat=0, rank=0), 15))
    resumed = list(islice(micro_batches(plan, seed=3, repeat=0, rank=0, first_step=2), 9))
    assert resumed == from_start[6:]


def test_micro_batches_are_lists_of_plain_integers() -> None:
    """A DataLoader hands them to dataset[index]; some datasets refuse numpy integers."""
    plan = BatchPlan(dataset_size=8, global_batch_size=4, world_size=2)
    first = next(micro_batches(plan, seed=0, repeat=0, rank=1))
    assert isinstance(first, list)
    assert [type(index) for index in first] == [int, int]


@PROPERTY
@given(dataset_size=st.integers(1, 60), seed=st.integers(0, 2**31), repeat=st.integers(0, 9), epoch=st.integers(0, 99))
def test_epoch_order_is_a_permutation(dataset_size: int, seed: int, repeat: int, epoch: int) -> None:
    """Law 7: every sample has one place in an epoch, whatever the seed."""
    order = epoch_order(dataset_size=dataset_size, seed=seed, repeat=repeat, epoch=epoch)
    assert np.sort(order).tolist() == list(range(dataset_size))


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [(10, 4, [8, 12]), (3, 4, [4]), (65, 64, [64, 128]), (7, 2, [6, 8]), (1, 8, [8])],
)
def test_nearest_sizes_lie_on_either_side_and_are_positive(size: int, parts: int, expected: list[int]) -> None:
    """An error that names the sizes that work saves the user the arithmetic; zero is not one of them."""
    assert nearest_global_batch_sizes(size, parts=parts) == expected


def evaluated(
    world_size: int, *, dataset_size: int = 23, num_samples: int = 100, batch_size: int = 3
) -> list[list[int]]:
    """What each rank counts, and the same number of forward passes for each."""
    shares = [
        evaluation_batches(
            dataset_size=dataset_size,
            num_samples=num_samples,
            batch_size=batch_size,
            world_size=world_size,
            rank=rank,
            seed=0,
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(batch and len(batch) <= batch_size for share in shares for batch, _ in share)
    assert all(weight in (0, len(batch)) for share in shares for batch, weight in share)
    return [[sample for batch, weight in share for sample in batch if weight] for share in shares]


@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 30])
def test_an_evaluation_counts_every_sample_once_in_any_world(world_size: int) -> None:
    """Also with more ranks than samples: those without one take part and count nothing."""
    counted = [sample for share in evaluated(world_size) for sample in share]
    assert sorted(counted) == list(range(23))


def test_an_evaluation_of_a_part_takes_the_same_samples_in_any_world() -> None:
    """Else two worlds would compare their trials on different data."""
    parts = [sorted(chain.from_iterable(evaluated(size, num_samples=10))) for size in (1, 2, 3, 4, 7)]
    assert len(parts[0]) == 10
    assert parts[0] != list(range(10))
    assert all(part == parts[0] for part in parts)


def test_weights_draw_samples_in_proportion_and_never_one_of_weight_zero() -> None:
    """Class balance: three rare samples as often as the many others together."""
    weights = np.array([0.0, 1.0, 1.0, 2.0, 0.0])
    order = weighted_order(weights, num_samples=40_000)
    counts = np.bincount(order(dataset_size=5, seed=0, repeat=0, epoch=0), minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[1:4] / 40_000, [0.25, 0.25, 0.5], atol=0.01)


def test_a_list_of_indices_is_shuffled_anew_each_epoch() -> None:
    """Samples that are left out never come; one that is listed twice comes twice."""
    order = listed_order(np.array([7, 3, 3, 5]))
    epochs = [order(dataset_size=9, seed=0, repeat=0, epoch=epoch).tolist() for epoch in range(8)]
    assert [sorted(epoch) for epoch in epochs] == [[3, 3, 5, 7]] * 8
    assert len({tuple(epoch) for epoch in epochs}) > 1


@PROPERTY
@given(world_size=st.integers(1, 4), accumulation_steps=st.integers(1, 3), seed=st.integers(0, 99))
def test_drawn_samples_are_cut_like_a_shuffle(world_size: int, accumulation_steps: int, seed: int) -> None:
    """Law 8 for samplers: the global batch of a step holds the same draws, however it is split, wherever it starts."""
    size = 12 * world_size * accumulation_steps
    order = weighted_order(np.arange(1.0, 8.0), num_samples=2 * size + 5)  # more than the dataset holds
    split = BatchPlan(
        dataset_size=7,
        global_batch_size=size,
        world_size=world_size,
        accumulation_steps=accumulation_steps,
        order=order,
    )
    whole = BatchPlan(dataset_size=7, global_batch_size=size, order=order)
    expected = batches(whole, 5, seed=seed)
    assert batches(split, 5, seed=seed) == expected
    assert batches(split, 2, seed=seed, first_step=3) == expected[3:]
    assert expected[2] != expected[0], "the second epoch is drawn anew"


def test_an_epoch_of_a_sampler_that_fills_no_batch_is_an_error() -> None:
    """It would be asked for more for ever."""
    plan = BatchPlan(dataset_size=9, global_batch_size=8, order=listed_order(np.arange(7)))
    with pytest.raises(
        ValueError, match=r"data\.sampler must give at least one global batch of 8 samples in each epoch"
    ):
        batches(plan, 1)
