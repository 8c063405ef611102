"""Small sweeps that tests run on ranks. Float64 by default: exact enough to compare worlds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.core.batch_plan import BatchPlan, micro_batches
from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.core.stop_rules import stop_rule
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.engine import RankContext, SweepResult, run_sweep
from lrrunner.training.fsdp import no_sync, shard
from lrrunner.training.sweep_run import SweepPlan
from lrrunner.training.trainable import Batches, Trainable

NUM_SAMPLES = 192


def regression_data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten inputs, one target with a curved dependence, fixed."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(NUM_SAMPLES, 10, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), (inputs[:, :1] * 2 + inputs[:, 1:2].tanh()).to(dtype)


def small_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same initial weights in every process."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of a batch."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def trainable(
    *,
    dtype: torch.dtype = torch.float64,
    global_batch_size: int = 48,
    accumulation_steps: int = 1,
    objective: Callable[..., Any] = squared_error,
    optimizer: Callable[..., torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=1e-3),
    model: nn.Module | None = None,
    fsdp: bool = False,
    **changes: Any,
) -> Trainable:
    """The small model, wrapped for the world this process is in."""
    raw = small_model(dtype) if model is None else model
    if fsdp:
        shard(raw, device=next(raw.parameters()).device)
        changes |= {"no_sync": functools.partial(no_sync, raw)}
    wrapped = DistributedDataParallel(raw) if dist.is_initialized() and not fsdp else raw
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    settings: dict[str, Any] = {"no_sync": getattr(wrapped, "no_sync", nullcontext)}
    return Trainable(
        model=wrapped,
        optimizer=optimizer(raw.parameters()),
        objective=objective,
        micro_batch_size=global_batch_size // (world_size * accumulation_steps),
        accumulation_steps=accumulation_steps,
        **(settings | changes),
    )


def rank_context(**changes: Any) -> RankContext:
    """This rank in the world that this process is in."""
    return RankContext(**({"collective": collective_for_world()} | changes))


def sweep_plan(*, num_steps: int = 60, start_lr: float = 1e-6, end_lr: float = 10.0, **changes: Any) -> SweepPlan:
    """An exponential LR schedule under the default stop rule."""
    settings = {
        "lrs": exponential_lr(start_lr=start_lr, end_lr=end_lr, num_steps=num_steps).tolist(),
        "beta": 0.9,
        "new_stop_rule": lambda: stop_rule("range", factor=2.0, num_steps=num_steps),
    }
    return SweepPlan(**(settings | changes))


def planned_batches(
    *, dtype: torch.dtype = torch.float64, global_batch_size: int = 48, accumulation_steps: int = 1
) -> Batches:
    """This rank's micro-batches by repeat."""
    inputs, targets = regression_data(dtype)
    world = collective_for_world()
    plan = BatchPlan(
        dataset_size=NUM_SAMPLES,
        global_batch_size=global_batch_size,
        world_size=world.world_size,
        accumulation_steps=accumulation_steps,
    )

    def batches(repeat: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in micro_batches(plan, seed=0, repeat=repeat, rank=world.rank, first_step=first_step):
            yield inputs[indices], targets[indices]

    return batches


def plain_sweep(dtype: torch.dtype = torch.float64, accumulation_steps: int = 1, **changes: Any) -> SweepResult:
    """A whole sweep of the small model."""
    return run_sweep(
        trainable(dtype=dtype, accumulation_steps=accumulation_steps),
        sweep_plan(**changes),
        planned_batches(dtype=dtype, accumulation_steps=accumulation_steps),
        context=rank_context(),
    )
