"""Several ranks continue from one checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrrunner.records import Step, StopReason
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.engine import RankContext, run_sweep
from lrrunner.training.state.checkpoints import Checkpoints, read_newest
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import planned_batches, small_model, squared_error, sweep_plan, trainable


class Killed(BaseException):
    """Stands for SIGKILL of all ranks at once."""


class Deep(nn.Module):
    """Layers used in another order than they are registered in, so that DDP orders its buckets anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        first: Any = small_model(torch.float32)
        self.last = nn.Linear(40, first[-1].out_features)
        self.middle = nn.ModuleList(nn.Linear(40, 40) for _ in range(5))
        self.first = nn.Linear(first[0].in_features, 40)
        self.norm = nn.BatchNorm1d(40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x))
        for layer in reversed(self.middle):
            x = nn.functional.dropout(torch.tanh(layer(x)), 0.1)
        return self.last(x)


def unequal(model: Any, batch: Any) -> Any:
    """Counts that differ by rank."""
    return squared_error(model, batch), 5 + 3 * collective_for_world().rank


def swept(
    folder: Path,
    *,
    die_at: int = -1,
    every_s: float = 0.0,
    stop_at: int = -1,
    objective: Callable[..., Any] | None = None,
) -> Any:
    """Sweep on this rank, from the newest checkpoint if there is one."""
    collective = collective_for_world()
    seen: list[Step] = []

    def on_step(step: Step) -> None:
        seen.append(step)
        if len(seen) == die_at:
            raise Killed

    saved = read_newest(folder, collective=collective)
    checkpoints = Checkpoints(folder, every_s=every_s, collective=collective, saved=saved)
    result = run_sweep(
        trainable(dtype=torch.float32, model=Deep(), objective=objective or squared_error),
        sweep_plan(num_steps=16, repeats=2, start_lr=1e-4, end_lr=0.1),
        planned_batches(dtype=torch.float32),
        context=RankContext(
            collective=collective,
            stop_requested=lambda: collective.rank == 1 and len(seen) == stop_at,
            checkpoints=checkpoints,
        ),
        on_step=on_step,
    )
    steps = [repr(dataclasses.replace(step, elapsed_s=0.0, timestamp_ms=0)) for step in result.steps]
    return steps, result.stops


def killed_and_resumed(folder: str, unequal_counts: bool) -> bool:
    objective = unequal if unequal_counts else None
    whole = swept(Path(folder) / "whole", every_s=1e5, objective=objective)
    for die_at in (3, 25):
        path = Path(folder) / str(die_at)
        try:
            swept(path, die_at=die_at, objective=objective)
        except Killed:
            collective_for_world().gather(None)
        assert swept(path, every_s=1e5, objective=objective) == whole, die_at
    return True


def test_resumed_ranks_have_the_same_records_to_the_last_bit(tmp_path: Path) -> None:
    """With three ranks the order of a sum counts, and it depends on DDP's buckets; random numbers differ by rank."""
    assert all(on_ranks(killed_and_resumed, 3, tmp_path / "plain", str(tmp_path), False))
    (tmp_path / "c").mkdir()
    assert all(on_ranks(killed_and_resumed, 2, tmp_path / "counts", str(tmp_path / "c"), True))


def stopped_and_resumed(folder: str) -> tuple[Any, int]:
    whole = swept(Path(folder) / "whole", every_s=1e5)
    _, stops = swept(Path(folder) / "stopped", every_s=1e5, stop_at=6)
    assert stops[0].reason == StopReason.INTERRUPTED
    assert stops[0].ranks == (1,)
    return swept(Path(folder) / "stopped", every_s=1e5) == whole, len(list((Path(folder) / "stopped").glob("*.pt")))


def test_one_ranks_stop_request_saves_on_all(tmp_path: Path) -> None:
    """The request is in the table that every step reduces, so that all ranks save after the same step."""
    assert on_ranks(stopped_and_resumed, 2, tmp_path / "ranks", str(tmp_path)) == [(True, 1)] * 2


def ranks_save_when_one_is_due(folder: str) -> int:
    """Only rank 1's clock says so."""
    collective = collective_for_world()
    swept(Path(folder) / "x", every_s=0.0 if collective.rank == 1 else 1e5)
    return len(list((Path(folder) / "x").glob("*.pt")))


def test_one_ranks_clock_is_enough(tmp_path: Path) -> None:
    """Clocks differ; a save in which only some ranks take part would wait for ever."""
    assert on_ranks(ranks_save_when_one_is_due, 2, tmp_path / "ranks", str(tmp_path)) == [2, 2]
