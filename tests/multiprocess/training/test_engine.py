"""One sweep on several real ranks is one sweep."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.core.curve import curve_from_steps
from lrrunner.core.suggestion_rules import suggest
from lrrunner.errors import UnreducedGradientError
from lrrunner.records import StopReason
from lrrunner.training.engine import SweepResult, run_sweep
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import (
    plain_sweep,
    planned_batches,
    rank_context,
    regression_data,
    small_model,
    squared_error,
    sweep_plan,
    trainable,
)

WORLDS = (2, 4)


def sweeps_of_all_settings() -> dict[tuple[torch.dtype, int], SweepResult]:
    return {
        (dtype, accumulation): plain_sweep(dtype, accumulation)
        for dtype in (torch.float64, torch.float32)
        for accumulation in (1, 2)
    }


@pytest.fixture(scope="module")
def sweeps_by_world(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Every rank's sweeps, by world size."""
    folder = tmp_path_factory.mktemp("worlds")
    worlds = {size: on_ranks(sweeps_of_all_settings, size, folder / str(size)) for size in WORLDS}
    return {1: [sweeps_of_all_settings()], **worlds}


def losses(result: SweepResult) -> np.ndarray:
    return np.array([step.loss for step in result.steps])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", WORLDS)
def test_same_global_batch_same_curve_and_lr_in_float64(
    sweeps_by_world: dict[int, list[Any]], world_size: int, accumulation: int
) -> None:
    """Law 8: what an LR is suggested for is the global batch, however it is split (catalogue rows 8, 9, 24)."""
    alone = sweeps_by_world[1][0][torch.float64, 1]
    split = sweeps_by_world[world_size][0][torch.float64, accumulation]
    np.testing.assert_allclose(losses(split), losses(alone), rtol=1e-9)
    assert split.stops == alone.stops
    for method in ("auto", "steepest", "minimum", "valley", "slide", "largest_drop"):
        one, other = (suggest(r.steps, r.stops, method=method) for r in (alone, split))
        assert one.lr == pytest.approx(other.lr, rel=1e-9)
    assert suggest(alone.steps, alone.stops).lr is not None


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", WORLDS)
def test_same_curve_up_to_its_minimum_in_float32(
    sweeps_by_world: dict[int, list[Any]], world_size: int, accumulation: int
) -> None:
    """Float32 rounds differently by split; only beyond the minimum does chaos make that visible."""
    alone = sweeps_by_world[1][0][torch.float32, 1]
    split = sweeps_by_world[world_size][0][torch.float32, accumulation]
    curve = curve_from_steps(alone.steps, beta=0.9)
    assert curve is not None
    until = curve.minimum_index
    assert until > 20
    np.testing.assert_allclose(losses(split)[:until], losses(alone)[:until], rtol=1e-5)
    assert suggest(split.steps, split.stops).lr == pytest.approx(suggest(alone.steps, alone.stops).lr, rel=0.01)


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_rank_reports_the_same_bits(sweeps_by_world: dict[int, list[Any]], world_size: int) -> None:
    """Law 4: ranks that see different bits may decide differently, and then one waits for ever (row 6)."""
    first, *others = sweeps_by_world[world_size]
    for other in others:
        for key, result in first.items():
            np.testing.assert_array_equal(losses(result), losses(other[key]))
            assert result.stops == other[key].stops
            assert suggest(result.steps, result.stops) == suggest(other[key].steps, other[key].stops)


def rank_dependent_sweep() -> SweepResult:
    """Rank r's loss is that of everyone plus r, so that mean, sum and rank 0's own loss differ."""

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        return squared_error(model, batch) * 0 + 1.0 + dist.get_rank()

    return run_sweep(
        trainable(objective=objective),
        sweep_plan(num_steps=5),
        planned_batches(),
        context=rank_context(),
    )


def test_recorded_loss_is_the_mean_over_ranks(tmp_path: Path) -> None:
    """Rows 7 and 8: ignite sums (3.0 here), Lightning watches rank 0 (1.0)."""
    for result in on_ranks(rank_dependent_sweep, 2, tmp_path):
        assert [step.loss for step in result.steps] == [1.5] * 5
        assert [step.num_items for step in result.steps] == [48.0] * 5


UNEQUAL_ITEMS = ((3, 5), (1, 7))
"""Items of each rank's two micro-batches."""


def unequal_objective(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    return squared_error(model, batch), len(batch[0])


def unequal_batches(repeat: int, first_step: int = 0) -> Iterator[Any]:
    """Rank 0 gets samples 0-2 and 3-7, rank 1 sample 8 and 9-15, in each step anew."""
    inputs, targets = regression_data()
    sizes = UNEQUAL_ITEMS[dist.get_rank()]
    start = sum(map(sum, UNEQUAL_ITEMS[: dist.get_rank()]))
    while True:
        for i, size in enumerate(sizes):
            first = start + sum(sizes[:i])
            yield inputs[first : first + size], targets[first : first + size]


def one_unequal_step() -> tuple[SweepResult, list[torch.Tensor]]:
    """One SGD step at LR 0.5 on unequal micro-batches, and the parameters right after it."""
    part = trainable(objective=unequal_objective, accumulation_steps=2, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    after: list[torch.Tensor] = []
    result = run_sweep(
        part,
        sweep_plan(lrs=[0.5]),
        unequal_batches,
        context=rank_context(),
        on_step=lambda step: after.extend(p.detach().clone() for p in part.model.parameters()),
    )
    return result, after


def test_unequal_items_give_the_step_of_one_process(tmp_path: Path) -> None:
    """Law 2: token-weighted losses must descend the loss they record, whatever each rank holds (row 9)."""
    inputs, targets = regression_data()
    model = small_model()
    loss = squared_error(model, (inputs[:16], targets[:16]))
    loss.backward()
    expected = [p.detach() - 0.5 * p.grad for p in model.parameters() if p.grad is not None]
    for result, after in on_ranks(one_unequal_step, 2, tmp_path):
        assert result.steps[0].loss == pytest.approx(loss.item(), rel=1e-12)
        assert result.steps[0].num_items == 16.0
        for ours, theirs in zip(after, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def constant_loss_sweep() -> SweepResult:
    """Rank 0: losses 1 and 2 on 3 and 5 items; rank 1: losses 4 and 8 on 1 and 7 items."""
    values = iter(((1.0, 2.0), (4.0, 8.0))[dist.get_rank()] * 10)

    def objective(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        return squared_error(model, batch) * 0 + next(values), len(batch[0])

    return run_sweep(
        trainable(objective=objective, accumulation_steps=2),
        sweep_plan(num_steps=3),
        unequal_batches,
        context=rank_context(),
    )


def test_recorded_loss_is_weighted_by_items(tmp_path: Path) -> None:
    """(3*1 + 5*2 + 1*4 + 7*8) / 16 = 73/16; an unweighted mean would say 3.75 (rows 8, 9, 24)."""
    for result in on_ranks(constant_loss_sweep, 2, tmp_path):
        assert [step.loss for step in result.steps] == [73 / 16] * 3


def nan_on_rank_1_sweep() -> SweepResult:
    calls = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        bad = dist.get_rank() == 1 and next(calls) == 7
        return squared_error(model, batch) * (math.nan if bad else 1.0)

    return run_sweep(
        trainable(objective=objective),
        sweep_plan(num_steps=30),
        planned_batches(),
        context=rank_context(),
    )


def test_nan_on_one_rank_stops_all_ranks_at_that_step(tmp_path: Path) -> None:
    """Rows 1 and 6: nan > x is false, so a rule that only compares never stops."""
    results = on_ranks(nan_on_rank_1_sweep, 3, tmp_path)
    for result in results:
        assert len(result.steps) == 8
        (stop,) = result.stops
        assert (stop.reason, stop.step, stop.ranks) == (StopReason.NON_FINITE, 7, (1,))
        assert math.isnan(result.steps[7].loss)
        assert math.isfinite(result.steps[6].loss)
    assert len({repr(suggest(r.steps, r.stops)) for r in results}) == 1


def stop_request_on_rank_1() -> SweepResult:
    calls = iter(range(1000))
    return run_sweep(
        trainable(),
        sweep_plan(num_steps=30, repeats=3),
        planned_batches(),
        context=rank_context(stop_requested=lambda: dist.get_rank() == 1 and next(calls) >= 4),
    )


def test_a_request_on_one_rank_stops_all_ranks_after_that_step(tmp_path: Path) -> None:
    """A signal reaches one rank first; if it left alone, the others would wait in the next reduction."""
    for result in on_ranks(stop_request_on_rank_1, 2, tmp_path):
        (stop,) = result.stops
        assert (stop.reason, stop.step, stop.ranks) == (StopReason.INTERRUPTED, 4, (1,))
        assert len(result.steps) == 5


def restored_after(error_at: int | None) -> tuple[bool, str]:
    """Whether model, buffers, optimizer and RNG are bitwise as before a sweep, and the error it ended with."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    calls = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        if error_at is not None and next(calls) == error_at:
            raise RuntimeError("boom")
        return squared_error(model, batch)

    part = trainable(model=Net().double(), objective=objective)
    batch = next(planned_batches()(0))
    squared_error(part.model, batch).backward()
    part.optimizer.step()  # a sweep in mid-training: the optimizer has state
    part.model.eval()
    before = state_bytes(part)
    error = ""
    try:
        run_sweep(
            part,
            sweep_plan(num_steps=12, repeats=2),
            planned_batches(),
            context=rank_context(),
        )
    except RuntimeError as caught:
        error = str(caught)
    return before == state_bytes(part), error


def state_bytes(part: Any) -> list[Any]:
    """Everything a sweep may touch, as bytes."""
    tensors = [*part.model.parameters(), *part.model.buffers()]
    tensors += [p.grad for p in part.model.parameters() if p.grad is not None]
    for state in part.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in part.optimizer.param_groups]
    training = [module.training for module in part.model.modules()]
    rng = (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), __import__("random").getstate())
    return [[t.detach().numpy().tobytes() for t in tensors], repr(groups), training, rng]


@pytest.mark.parametrize("error_at", [None, 5])
def test_restore_is_bitwise_on_two_ranks(tmp_path: Path, error_at: int | None) -> None:
    """Rows 10, 14, 15, 16: each rank restores by itself, in memory, also when a step raises."""
    for same, error in on_ranks(restored_after, 2, tmp_path, error_at):
        assert same
        assert error == ("" if error_at is None else "boom")


def bypassing_sweep(accumulation_steps: int) -> str:
    """The loss calls the module inside of DDP, so that nothing reduces its gradient."""

    def objective(model: Any, batch: Any) -> torch.Tensor:
        return squared_error(model.module, batch)

    part = trainable(objective=objective, accumulation_steps=accumulation_steps)
    before = [p.detach().clone() for p in part.parameters]
    with pytest.raises(UnreducedGradientError) as error:
        run_sweep(
            part,
            sweep_plan(num_steps=5),
            planned_batches(accumulation_steps=accumulation_steps),
            context=rank_context(),
        )
    assert all(map(torch.equal, before, part.parameters))
    return str(error.value)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_ranks_that_train_apart_are_refused_at_the_first_step(tmp_path: Path, accumulation_steps: int) -> None:
    """Two ranks were 5.1 apart in a weight, and the result said: 2 ranks, verdict ok."""
    messages = on_ranks(bypassing_sweep, 2, tmp_path, accumulation_steps)
    assert messages[0] == messages[1]
    assert re.search(r"got norms [\d.]+ on rank 0, [\d.]+ on rank 1 at step 0: the loss bypasses", messages[0])


class PartlyLocal(nn.Module):
    """DDP leaves its first layer alone, which differs by rank."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model()
        first: Any = self.inner[0]
        with torch.no_grad():
            first.weight += dist.get_rank()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number a sample."""
        output: torch.Tensor = self.inner(x)
        return output


def partly_local_sweep(bypasses: bool, bad_step: int = -1) -> Any:
    """Records, or the message where the other layers' gradients are not reduced."""
    model = PartlyLocal()
    ignored = ["inner.0.weight", "inner.0.bias"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    seen = iter(range(1000))

    def objective(model: Any, batch: Any) -> torch.Tensor:
        loss = squared_error(model.module if bypasses else model, batch)
        weight = model.module.inner[0].weight
        bad = next(seen) == bad_step and dist.get_rank() == 1
        return loss + torch.sqrt(weight.sum() - weight.sum()) if bad else loss

    part = trainable(model=model, objective=objective, max_grad_norm=0.5)
    try:
        return run_sweep(part, sweep_plan(num_steps=8, end_lr=1e-3), planned_batches(), context=rank_context())
    except UnreducedGradientError as error:
        return str(error)


def test_what_ddp_leaves_alone_may_differ_and_the_rest_must_agree(tmp_path: Path) -> None:
    """One ignored parameter switched the whole comparison off; ranks recorded different norms."""
    first, second = on_ranks(partly_local_sweep, 2, tmp_path / "reduced", False)
    assert [step.grad_norm for step in first.steps] == [step.grad_norm for step in second.steps]
    assert len(first.steps) == 8
    for message in on_ranks(partly_local_sweep, 2, tmp_path / "apart", True):
        assert "at step 0: the loss bypasses" in message


def test_a_bad_gradient_that_one_rank_keeps_to_itself_stops_all_ranks(tmp_path: Path) -> None:
    """Each rank looked at its own norm: one stopped, and the others waited for it."""
    for result in on_ranks(partly_local_sweep, 2, tmp_path, False, 4):
        (stop,) = result.stops
        assert (stop.reason, stop.step, stop.in_gradient) == (StopReason.NON_FINITE, 4, True)


def rank_1_has_a_bad_sample() -> SweepResult:
    """The gradient of one of rank 1's batches is not finite, whenever it is computed."""
    bad_batch: list[float] = []
    num_seen = 0

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal num_seen
        key = float(batch[0].sum())
        num_seen += 1
        if dist.get_rank() == 1 and num_seen == 8:
            bad_batch.append(key)
        loss = squared_error(model, batch)
        return loss + torch.sqrt(loss - loss) if key in bad_batch else loss

    return run_sweep(
        trainable(objective=objective), sweep_plan(num_steps=30), planned_batches(), context=rank_context()
    )


def test_a_bad_gradient_is_noticed_at_its_step_on_its_rank(tmp_path: Path) -> None:
    """DDP spreads it to all ranks, and one step later every loss is NaN: nobody could say where it came from."""
    for result in on_ranks(rank_1_has_a_bad_sample, 3, tmp_path):
        (stop,) = result.stops
        assert (stop.reason, stop.step, stop.ranks) == (StopReason.NON_FINITE, 7, (1,))
        assert stop.in_gradient
        assert stop.is_partial
        assert math.isfinite(result.steps[7].loss)
        assert not math.isfinite(result.steps[7].grad_norm)


def random_gradients_of_rank_1() -> SweepResult:
    """Whether a gradient is finite depends on what the objective draws."""

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = squared_error(model, batch)
        drawn = (float(torch.rand(())), random.random(), float(np.random.rand()))
        is_bad = dist.get_rank() == 1 and min(drawn) > 0.5
        return loss + torch.sqrt(loss - loss) if is_bad else loss

    return run_sweep(
        trainable(objective=objective), sweep_plan(num_steps=60, end_lr=1e-3), planned_batches(), context=rank_context()
    )


def test_a_gradient_that_random_numbers_spoil_is_found_again(tmp_path: Path) -> None:
    """The second look drew other numbers, found nothing, and named nobody."""
    for result in on_ranks(random_gradients_of_rank_1, 2, tmp_path):
        (stop,) = result.stops
        assert (stop.reason, stop.ranks, stop.in_gradient) == (StopReason.NON_FINITE, (1,), True)


def sweep_without_items(skip: str) -> SweepResult:
    """Some ranks, or all of them, have nothing to learn from in every third step."""
    calls = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> Any:
        loss = squared_error(model, batch)
        skips = next(calls) % 3 == 1 and (skip == "all" or dist.get_rank() == 1)
        return None if skips else loss

    return run_sweep(
        trainable(objective=objective), sweep_plan(num_steps=12), planned_batches(), context=rank_context()
    )


def test_a_rank_without_items_contributes_nothing(tmp_path: Path) -> None:
    """The others' gradients count in full: 24 of 48 samples."""
    for result in on_ranks(sweep_without_items, 2, tmp_path, "one"):
        assert [step.num_items for step in result.steps] == [24.0 if i % 3 == 1 else 48.0 for i in range(12)]
        assert all(math.isfinite(step.loss) and step.grad_norm > 0 for step in result.steps)
        assert not any(step.skipped for step in result.steps)


def test_a_step_without_any_items_is_skipped_and_no_point(tmp_path: Path) -> None:
    """Law 10: as a training would, the sweep goes on; the step is tried again with the next batch."""
    for result in on_ranks(sweep_without_items, 2, tmp_path, "all"):
        assert [step.step for step in result.steps if not step.skipped] == list(range(12))
        assert sum(step.skipped for step in result.steps) == 6
        assert all(step.monitored_loss is None for step in result.steps if step.skipped)
        assert result.stops[0].reason == StopReason.END_OF_SCHEDULE
