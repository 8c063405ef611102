"""A sharded model (FSDP2) is swept like a replicated one (DDP); each rank saves and restores its shard."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.records import Training
from lrrunner.sweep.confirmation_runs import TrialSettings, run_trials
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.fsdp import local_part, shard
from lrrunner.training.state.checkpoints import Checkpoints, read_newest
from lrrunner.training.trainable import Trainable
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweep.test_confirmation_runs import evaluator
from tests.multiprocess.sweeps import planned_batches, rank_context, squared_error, sweep_plan, trainable

WIDTH = 13
"""Odd, so that two ranks hold shards of different sizes."""


class Deep(nn.Module):
    """Blocks in a list, parameters beside it, buffers and random numbers."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(10, WIDTH, dtype=dtype)
        self.norm = nn.BatchNorm1d(WIDTH, dtype=dtype) if norm else nn.Identity()
        self.middle = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(2))
        self.last = nn.Linear(WIDTH, 1, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number a sample."""
        x = self.norm(self.first(x))
        for layer in self.middle:
            x = nn.functional.dropout(torch.tanh(layer(x)), 0.1, training=self.training)
        return self.last(x)


def unequal(model: Any, batch: Any) -> Any:
    """Counts that differ by rank, on batches that do not."""
    return squared_error(model, batch), 5 + 3 * dist.get_rank()


def part(fsdp: bool, *, dtype: torch.dtype = torch.float64, **changes: Any) -> Trainable:
    return trainable(dtype=dtype, model=Deep(dtype), fsdp=fsdp, **changes)


def sweep(trained: Trainable, *, dtype: torch.dtype = torch.float64, **changes: Any) -> SweepResult:
    return run_sweep(
        trained,
        sweep_plan(**{"num_steps": 24, "start_lr": 1e-4} | changes),
        planned_batches(dtype=dtype, accumulation_steps=trained.accumulation_steps),
        context=rank_context(),
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulation_steps": 2},
    "clipping": {"max_grad_norm": 0.3},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True)},
    "unequal counts, accumulation": {"objective": unequal, "accumulation_steps": 3},
    "bf16": {"dtype": torch.float32, "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16)},
}


def losses_and_norms(fsdp: bool, options: dict[str, Any]) -> list[tuple[float, float]]:
    """Of a sweep up to an LR of 1; beyond, steps amplify the last bit, in which sums of shards differ."""
    result = sweep(part(fsdp, **options), dtype=options.get("dtype", torch.float64), end_lr=1.0)
    return [(step.loss, step.grad_norm) for step in result.steps]


def state_bytes(trained: Trainable) -> list[Any]:
    """Everything a sweep may touch on this rank, as bytes."""
    tensors = [*trained.model.parameters(), *trained.model.buffers()]
    tensors += [p.grad for p in trained.model.parameters() if p.grad is not None]
    for state in trained.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in trained.optimizer.param_groups]
    kinds = [type(tensor).__name__ for tensor in tensors]
    return [kinds, [local_part(t).numpy().tobytes() for t in tensors], repr(groups), torch.get_rng_state().tolist()]


def restored_after(error_at: int | None) -> tuple[bool, str, bool]:
    """Whether all of a model in mid-training is as before, the error that ended the sweep, and whether it goes on."""
    trained = part(True)
    squared_error(trained.model, next(planned_batches()(0))).backward()
    trained.optimizer.step()
    before, error, calls = state_bytes(trained), "", iter(range(1000))

    def fail(module: nn.Module, inputs: Any) -> None:
        if next(calls) == error_at:
            raise RuntimeError("boom")

    trained.model.get_submodule("last").register_forward_pre_hook(fail)  # when the root and the blocks are gathered
    try:
        sweep(trained, num_steps=6, repeats=2)
    except RuntimeError as caught:
        error = str(caught)
    same = state_bytes(trained) == before
    again = sweep(trained, num_steps=3)
    return same, error, all(math.isfinite(step.loss) for step in again.steps)


class Killed(BaseException):
    """Stands for SIGKILL of all ranks at once."""


def swept(folder: Path, *, die_at: int = -1, every_s: float = 0.0) -> Any:
    """Sweep on this rank, from the newest checkpoint if there is one."""
    collective = collective_for_world()
    count = 0

    def on_step(step: Any) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed

    saved = read_newest(folder, collective=collective)
    result = run_sweep(
        part(True, dtype=torch.float32),
        sweep_plan(num_steps=10, repeats=2, start_lr=1e-4, end_lr=0.1),
        planned_batches(dtype=torch.float32),
        context=RankContext(
            collective=collective, checkpoints=Checkpoints(folder, every_s=every_s, collective=collective, saved=saved)
        ),
        on_step=on_step,
    )
    return [repr(dataclasses.replace(step, elapsed_s=0.0, timestamp_ms=0)) for step in result.steps], result.stops


def killed_and_resumed(folder: Path) -> tuple[bool, list[str], int]:
    """Whether the records are those of an uninterrupted run, the files after the kill, and numbers in a rank's file.

    The newest shard of rank 1 is cut in half before the run goes on: all ranks fall back to the checkpoint before.
    """
    whole = swept(folder / "whole", every_s=1e5)
    try:
        swept(folder / "killed", die_at=15)
    except Killed:
        collective_for_world().gather(None)
    files = sorted(path.name for path in (folder / "killed").iterdir())
    content = torch.load(folder / "killed" / f"{files[-1]}", weights_only=True)
    numbers = sum(saved["tensor"].numel() for saved in content["world"]["parameters"])
    collective_for_world().gather(None)
    if dist.get_rank() == 1:
        newest = folder / "killed" / files[-1]
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    collective_for_world().gather(None)
    return swept(folder / "killed", every_s=1e5) == whole, files, numbers


def overflow_on_rank_1() -> list[tuple[int, bool]]:
    """A sweep through a gradient scaler; in the first step, one number of rank 1's shard overflows."""

    steps = iter(range(1000))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trained = part(True, dtype=torch.float32, scaler=scaler, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    unscale = scaler.unscale_

    def unscale_(optimizer: torch.optim.Optimizer) -> None:
        gradient = next(trained.model.parameters()).grad
        assert gradient is not None
        if next(steps) == 0 and dist.get_rank() == 1:
            local_part(gradient)[0] = math.inf
        unscale(optimizer)

    scaler.unscale_ = unscale_  # type: ignore[method-assign]
    result = sweep(trained, dtype=torch.float32, num_steps=2, end_lr=1e-3)
    return [(step.step, step.skipped) for step in result.steps]


class Counting:
    """A world that counts its all-reduces."""

    def __init__(self) -> None:
        self._world, self.count = collective_for_world(), 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self._world.sum_(tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


def num_reductions(num_steps: int) -> int:
    """All-reduces of a whole sweep."""
    world: Any = Counting()
    plan = sweep_plan(num_steps=num_steps, end_lr=1e-3)
    assert len(run_sweep(part(True), plan, planned_batches(), context=RankContext(collective=world)).steps) == num_steps
    count: int = world.count
    return count


def trial_losses(fsdp: bool) -> list[float]:
    """What confirmation runs measure: training, then evaluation, each from the initial weights."""
    trained = trainable(model=Deep(norm=False), fsdp=fsdp)  # DDP would copy rank 0's running statistics to all
    return [
        trial.loss
        for trial in run_trials(
            TrialSettings(training=Training(schedule="cosine"), beta=0.9),
            plan=lambda trials, initial_loss: PlannedTrial((0.01, 0.1)[len(trials)], 8) if len(trials) < 2 else None,
            trainable=trained,
            batches=planned_batches(),
            evaluate=evaluator(trained),
            context=rank_context(),
        ).trials
    ]


def measured(folder: str) -> dict[str, Any]:
    """All of it in one launch."""
    model = Deep()
    shard(model, device=torch.device("cpu"))
    return {
        "sharded": [type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)],
        "numbers": sum(local_part(parameter).numel() for parameter in model.parameters()),
        "losses": {
            (name, fsdp): losses_and_norms(fsdp, options)
            for name, options in SETTINGS.items()
            for fsdp in (False, True)
        },
        "trials": [trial_losses(fsdp) for fsdp in (False, True)],
        "restored": [restored_after(error_at) for error_at in (None, 2)],
        "resumed": killed_and_resumed(Path(folder)),
        "overflow": overflow_on_rank_1(),
        "reductions": num_reductions(12) - num_reductions(6),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has measured."""
    folder = tmp_path_factory.mktemp("fsdp")
    return on_ranks(measured, 2, folder / "ranks", str(folder))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_curve_is_that_of_ddp(found: list[dict[str, Any]], settings: str) -> None:
    """Losses and gradient norms, also where clipping, accumulation and unequal counts act on the gradients' shards."""
    for rank in found:
        copied, sharded = (np.array(rank["losses"][settings, fsdp]) for fsdp in (False, True))
        exact = settings != "bf16"
        assert len(copied) > 10
        np.testing.assert_allclose(
            sharded[: None if exact else 10], copied[: None if exact else 10], rtol=1e-9 if exact else 1e-4
        )
    assert found[0]["losses"][settings, True] == found[1]["losses"][settings, True]


def test_blocks_and_root_are_sharded_and_ranks_share_the_numbers(found: list[dict[str, Any]]) -> None:
    """Accelerate's switch silently runs DDP on a CPU; here the requested wrapper is used."""
    assert [rank["sharded"] for rank in found] == [["FSDPDeep", "FSDPLinear", "FSDPLinear"]] * 2
    whole = sum(parameter.numel() for parameter in Deep().parameters())
    assert sum(rank["numbers"] for rank in found) == whole
    assert found[0]["numbers"] != found[1]["numbers"]


def test_confirmation_runs_measure_the_same(found: list[dict[str, Any]]) -> None:
    """Evaluations gather blocks, and no backward pass follows that would free them."""
    for rank in found:
        copied, sharded = rank["trials"]
        assert sharded == pytest.approx(copied, rel=1e-9)


def test_shards_are_restored_bit_for_bit_also_from_the_middle_of_a_pass(found: list[dict[str, Any]]) -> None:
    """An exception in forward leaves parameters gathered; writing to shards would change nothing that is used."""
    for rank in found:
        assert rank["restored"] == [(True, "", True), (True, "boom", True)]


def test_a_killed_sweep_resumes_from_files_of_shards_to_the_last_bit(found: list[dict[str, Any]]) -> None:
    """Each rank writes what it holds, so that no rank needs the memory for the whole."""
    for rank in found:
        same, files, numbers = rank["resumed"]
        assert same
        assert files == [f"{n:08d}.{end}" for n in (13, 14) for end in ("pt", "rank0", "rank1")]
        assert numbers == found[1]["numbers"]


def test_the_norm_of_all_shards_travels_in_the_one_reduction(found: list[dict[str, Any]]) -> None:
    """Law 3: one reduction a step, beside what is agreed once a repeat."""
    assert [rank["reductions"] for rank in found] == [6, 6]


def test_an_overflow_in_one_ranks_shard_is_everyones(found: list[dict[str, Any]]) -> None:
    """Law 9: a rank that steps while another one skips ends with other weights."""
    assert [rank["overflow"] for rank in found] == [[(0, True), (0, False), (1, False)]] * 2
