"""A rank that has nothing to learn from takes part in what the other ranks wait for, also without calling the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.training.engine import run_sweep
from lrrunner.training.trainable import Trainable
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import planned_batches, rank_context, small_model, squared_error, sweep_plan, trainable

SKIPPED = (0, 1, 5, 6)
"""Micro-batches that rank 1 has nothing to learn from; after the first one, DDP rebuilds its buckets."""

Skip = Callable[[nn.Module, Any], Any]


class TwoHeads(nn.Module):
    """Uses one of its heads only."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3, dtype=torch.float64)
        self.used = small_model()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        """One number a sample, in a dictionary."""
        return {"values": [self.used(x)]}


def masked(model: nn.Module, batch: Any) -> Any:
    """A mean over a mask that is empty: 0 / 0, whose gradient is NaN."""
    errors = (model(batch[0]) - batch[1]).square()
    return (errors * 0.0).sum() / torch.zeros((), dtype=errors.dtype), 0


def after_the_call(model: nn.Module, batch: Any) -> None:
    """Call the model, and find nothing."""
    model(batch[0])


SKIPS: dict[str, Skip] = {
    "none": lambda model, batch: None,
    "none after the call": after_the_call,
    "masked mean": masked,
}


def two_heads_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0])["values"][0], batch[1])


def part_of(kind: str, *, objective: Any, accumulation_steps: int) -> Trainable:
    """A model wrapped in one of the ways that there are."""
    options: dict[str, Any] = {
        "objective": objective,
        "micro_batch_size": 24 // accumulation_steps,
        "accumulation_steps": accumulation_steps,
    }
    model: Any
    if kind == "fsdp":
        return trainable(model=small_model(), fsdp=True, objective=objective, accumulation_steps=accumulation_steps)
    if kind == "unused":
        model = DistributedDataParallel(TwoHeads(), find_unused_parameters=True)
    elif kind == "two wrappers":
        model = nn.ModuleList([DistributedDataParallel(small_model()), DistributedDataParallel(small_model())])
        options["objective"] = lambda model, batch: objective(model[0], batch)
        options["no_sync"] = model[0].no_sync
    else:
        model = DistributedDataParallel(small_model(), static_graph=kind == "static")
    parameters = list(model.parameters())
    if kind == "part":
        parameters = parameters[2:]
    options["optimizer"] = torch.optim.AdamW(parameters, lr=1e-3)
    options.setdefault("no_sync", getattr(model, "no_sync", None))
    return Trainable(model=model, **options)


def sweep_with_skips(kind: str, skip: str, accumulation_steps: int = 1) -> list[tuple[float, float, float]]:
    """Losses, gradient norms and item counts of a sweep whose rank 1 skips some micro-batches."""
    loss = two_heads_error if kind == "unused" else squared_error
    seen = iter(range(10_000))

    def objective(model: nn.Module, batch: Any) -> Any:
        number = next(seen)
        if dist.get_rank() == 1 and number in SKIPPED:
            return (0.0 * loss(model, batch), 0) if skip == "zero" else SKIPS[skip](model, batch)
        return loss(model, batch)

    part = part_of(kind, objective=objective, accumulation_steps=accumulation_steps)
    result = run_sweep(
        part,
        sweep_plan(num_steps=10, end_lr=1e-3),
        planned_batches(accumulation_steps=accumulation_steps),
        context=rank_context(),
    )
    return [(step.loss, step.grad_norm, step.num_items) for step in result.steps]


CASES = [
    *(("plain", skip, steps) for skip in ("none", "none after the call", "masked mean") for steps in (1, 2)),
    *(("unused", skip, 1) for skip in ("none", "none after the call")),
    ("part", "none", 1),
    ("part", "none after the call", 2),
    ("two wrappers", "none after the call", 1),
    ("static", "none after the call", 1),
    ("fsdp", "none after the call", 1),
    ("fsdp", "none after the call", 2),
    ("fsdp", "masked mean", 2),
]


def all_cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, skip, steps in CASES:
        for how in ("zero", skip):
            found[f"{kind} {how} {steps}"] = sweep_with_skips(kind, how, steps)
    return found


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(all_cases, 2, tmp_path_factory.mktemp("skips"))


@pytest.mark.parametrize(("kind", "skip", "steps"), CASES)
def test_a_skipped_batch_is_one_that_weighs_nothing(
    by_rank: list[dict[str, Any]], kind: str, skip: str, steps: int
) -> None:
    """None before the model was called ended in an abort of gloo; 0 / 0 in a NaN gradient on all ranks."""
    for found in by_rank:
        skipped, weighing_nothing = found[f"{kind} {skip} {steps}"], found[f"{kind} zero {steps}"]
        assert len(skipped) == 10
        assert [items for *_, items in skipped] == [items for *_, items in weighing_nothing]
        assert min(items for *_, items in skipped) == 24
        assert [loss for loss, *_ in skipped] == pytest.approx([loss for loss, *_ in weighing_nothing], rel=1e-12)
        assert [norm for _, norm, _ in skipped] == pytest.approx([norm for _, norm, _ in weighing_nothing], rel=1e-12)


REFUSED = [
    ("static", "DDP with static_graph"),
    ("fsdp", "FSDP2"),
    ("two wrappers", "several DistributedDataParallel modules"),
]


def refusal(kind: str) -> str:
    """What is said where only the model's own forward pass could take part."""
    try:
        sweep_with_skips(kind, "none")
    except ValueError as error:
        return str(error)
    except RuntimeError as error:  # the other rank has ended
        return f"consequence: {error}"
    return "no error"


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_where_only_a_forward_pass_helps_the_way_out_is_named(tmp_path: Path, kind: str, name: str) -> None:
    """The rank that skips says so; the others fail when it ends."""
    messages = on_ranks(refusal, 2, tmp_path, kind)
    assert f"must call the model in every micro-batch under {name}" in messages[1]
    assert "call the model and return (0 * loss, 0)" in messages[1]
