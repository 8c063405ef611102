"""The loop on a GPU: the host never waits for it, results are those of a CPU, and everything is restored."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.step.gradient_probe import GradientProbe
from tests.gpu.sweeps import DEVICES, DEVICES_OF_LAUNCHES, batches_for, on_device, sweep_on
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import rank_context, squared_error, sweep_plan

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")

WARM_UP_STEPS = 5
BUSY_CYCLES = 30_000_000
"""Some ten milliseconds of a GPU: a step that takes the host far less than the device."""


@contextmanager
def no_waiting_allowed() -> Iterator[Callable[[], None]]:
    """Gives a switch behind which an operation that makes the host wait for the GPU is an error; off at the end."""
    try:
        yield lambda: torch.cuda.set_sync_debug_mode("error") if torch.cuda.is_available() else None
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


def steady_sweep(device: str, *, wait: bool = False, **changes: Any) -> SweepResult:
    """A sweep whose steps behind the first few may not wait, all the way from the batch to the record."""
    calls = iter(range(10_000))
    with no_waiting_allowed() as forbid_waiting:

        def objective(model: nn.Module, batch: Any) -> Any:
            if next(calls) == WARM_UP_STEPS * changes.get("accumulation_steps", 1):
                forbid_waiting()
            loss = squared_error(model, batch)
            if wait:
                loss.item()
            return (loss, torch.full((), len(batch[0]), device=device)) if weighted else loss

        weighted, probed = changes.pop("weighted", False), changes.pop("probed", False)
        part = on_device(device, objective=objective, **changes)
        accumulation = changes.get("accumulation_steps", 1)
        return run_sweep(
            part,
            sweep_plan(num_steps=20, start_lr=1e-6, end_lr=1e-3),
            batches_for(device, accumulation_steps=accumulation),
            context=rank_context(),
            on_end=lambda stop: torch.cuda.set_sync_debug_mode("default") if torch.cuda.is_available() else None,
            probe=GradientProbe(part.parameters) if probed else None,
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 0.1, "accumulation_steps": 2},
        {"weighted": True, "accumulation_steps": 2},
        {"probed": True, "accumulation_steps": 2},
        {"probed": True, "weighted": True, "accumulation_steps": 2},
    ],
    ids=["plain", "clipped", "weighted", "noise_scale", "weighted_noise_scale"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_steady_steps_do_not_synchronise(device: str, changes: dict[str, Any]) -> None:
    """Law 11, as CUDA itself sees it: torch raises where a step would make the host wait."""
    result = steady_sweep(device, **changes)
    assert len(result.steps) == 20
    assert all(np.isfinite(step.loss) for step in result.steps)
    assert all((step.gradient_variance is not None) == changes.get("probed", False) for step in result.steps)


@pytest.mark.gpu
def test_a_step_that_waits_would_be_seen() -> None:
    """The check above can fail."""
    with pytest.raises(RuntimeError, match="synchroniz"):
        steady_sweep("cuda", wait=True)


@pytest.mark.parametrize("device", DEVICES)
def test_the_host_runs_ahead_of_the_device(device: str, record_property: Callable[[str, object], None]) -> None:
    """When the host begins a step, the GPU is still at the one before; reading every step at once takes that away."""

    def steps_ahead(*, sync_every_step: bool) -> int:
        events: list[torch.cuda.Event] = []
        ahead = 0

        def objective(model: nn.Module, batch: Any) -> torch.Tensor:
            nonlocal ahead
            ahead += bool(events) and not events[-1].query()
            if device == "cuda":
                torch.cuda._sleep(BUSY_CYCLES)
                events.append(torch.cuda.Event())
                events[-1].record()
            return squared_error(model, batch)

        part = on_device(device, objective=objective)
        run_sweep(
            part,
            sweep_plan(num_steps=20, start_lr=1e-6, end_lr=1e-3, sync_every_step=sync_every_step),
            batches_for(device),
            context=rank_context(),
        )
        return ahead

    ahead = steps_ahead(sync_every_step=False)
    record_property("steps ahead", f"{ahead} of 19")
    assert ahead >= (15 if device == "cuda" else 0)
    assert steps_ahead(sync_every_step=True) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_curve_is_that_of_a_cpu(device: str) -> None:
    """In float64 up to the divergence, noise of the gradient included."""
    here, cpu = (sweep_on(where, dtype=torch.float64, probed=True, end_lr=1e-1) for where in (device, "cpu"))
    assert len(here.steps) == len(cpu.steps) == 60
    for name in ("loss", "smoothed_loss", "grad_norm"):
        ours, theirs = ([getattr(step, name) for step in result.steps] for result in (here, cpu))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert here.stops == cpu.stops


@pytest.mark.parametrize("device", DEVICES)
def test_a_divergence_stops_in_time_and_all_is_restored(device: str) -> None:
    """The stop may trail by a step, whose record is dropped; weights, optimizer and random numbers come back."""
    part = on_device(device)
    before = [parameter.detach().clone() for parameter in part.parameters]
    random_numbers = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    result = run_sweep(part, sweep_plan(), batches_for(device), context=rank_context())
    assert result.stops[0].reason == "diverged"
    assert result.steps[-1].step == result.stops[0].step
    assert all(torch.equal(*pair) for pair in zip(part.parameters, before, strict=True))
    assert torch.equal(random_numbers, torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state())
    assert not part.optimizer.state


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_breaks_behind_a_bad_loss_is_a_non_finite_stop(device: str) -> None:
    """The reason is the step that was not read yet, not what came of it."""
    calls = iter(range(1000))

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        number = next(calls)
        if number == 8 and device == "cuda":
            raise RuntimeError("a consequence of the NaN before")
        return squared_error(model, batch) * (float("nan") if number == 7 else 1.0)

    part = on_device(device, objective=objective)
    result = run_sweep(part, sweep_plan(num_steps=20), batches_for(device), context=rank_context())
    assert (result.stops[0].reason, result.stops[0].step) == ("non_finite", 7)


class Normalised(nn.Module):
    """A model whose batch statistics span the ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def sweep_of_two(device: str, normalised: bool) -> SweepResult:
    """On ranks that share one device; on a GPU, batch norm is synchronised."""
    model: Any = Normalised().double() if normalised else None
    if normalised and device == "cuda" and dist.is_initialized():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    part = on_device(device, dtype=torch.float64, model=model)
    return run_sweep(
        part,
        sweep_plan(num_steps=30, end_lr=1e-1),
        batches_for(device, dtype=torch.float64),
        context=rank_context(),
        probe=GradientProbe(part.parameters),
    )


@pytest.mark.parametrize("device", DEVICES_OF_LAUNCHES)
def test_two_ranks_share_one_device(device: str, tmp_path: Path) -> None:
    """Two gloo ranks on one GPU give the curve of one rank, with the same bits on both; SyncBatchNorm also."""
    for normalised in (False, True) if device == "cuda" else (False,):
        alone = sweep_of_two(device, normalised)
        first, second = on_ranks(sweep_of_two, 2, tmp_path / str(normalised), device, normalised)
        np.testing.assert_allclose([s.loss for s in first.steps], [s.loss for s in alone.steps], rtol=1e-6)
        assert [s.loss for s in first.steps] == [s.loss for s in second.steps]
        assert [s.gradient_variance for s in first.steps] == [s.gradient_variance for s in second.steps]


def sharded_and_copied(device: str, folder: Path) -> list[SweepResult]:
    """In a world of one rank, which has a GPU to itself: FSDP2, then DDP."""
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/world", rank=0, world_size=1
    )
    found = []
    for fsdp in (True, False):
        part = on_device(device, dtype=torch.float64, fsdp=fsdp, max_grad_norm=10.0)
        batches = batches_for(device, dtype=torch.float64)
        found.append(run_sweep(part, sweep_plan(end_lr=1e-1), batches, context=rank_context()))
        assert not part.optimizer.state, "restored"
    del part
    gc.collect()
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("device", DEVICES_OF_LAUNCHES)
def test_fsdp(device: str, tmp_path: Path) -> None:
    """Shards on one GPU give the curve of DDP there, and the norm of the whole gradient."""
    ((sharded, copied),) = on_ranks(sharded_and_copied, 1, tmp_path, device, tmp_path, group=False)
    assert len(sharded.steps) == 60
    for name in ("loss", "grad_norm"):
        ours, theirs = ([getattr(step, name) for step in result.steps] for result in (sharded, copied))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
