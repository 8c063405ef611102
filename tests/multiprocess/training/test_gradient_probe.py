"""The noise in the gradient between real ranks, under every way in which DDP may treat gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.core.noise_scale import noise_scale
from lrrunner.records import Suggestion, Verdict
from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.step.gradient_probe import GradientProbe
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import (
    planned_batches,
    rank_context,
    regression_data,
    small_model,
    squared_error,
    sweep_plan,
    trainable,
)
from tests.multiprocess.training.test_engine import UNEQUAL_ITEMS, unequal_batches, unequal_objective
from tests.unit.training.step.test_gradient_probe import ALMOST_STILL, brute_force

STEPS_OF_SETTINGS = [
    (name, accumulation)
    for name in ("default", "find_unused_parameters", "static_graph", "gradient_as_bucket_view")
    for accumulation in (1, 2)
    if (name, accumulation) != ("static_graph", 2)  # torch fails by itself, and stage A refuses it
]

DDP_SETTINGS: dict[str, dict[str, bool]] = {
    "default": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


class PartlyUsed(nn.Module):
    """A parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = small_model(torch.float32)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.used(x)


def sweep_under(settings: dict[str, bool], *, probed: bool, accumulation_steps: int = 1) -> SweepResult:
    """A float32 sweep up to a divergence."""
    part = trainable(dtype=torch.float32, accumulation_steps=accumulation_steps)
    raw = PartlyUsed() if settings.get("find_unused_parameters") else small_model(torch.float32)
    model = DistributedDataParallel(raw, **settings)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(raw.parameters(), lr=1e-3)
    part = dataclasses.replace(part, model=model, optimizer=optimizer, no_sync=model.no_sync)
    return run_sweep(
        part,
        sweep_plan(num_steps=30),
        planned_batches(dtype=torch.float32, accumulation_steps=accumulation_steps),
        context=rank_context(),
        probe=GradientProbe(part.parameters) if probed else None,
    )


def still_sweep(accumulation_steps: int) -> SweepResult:
    """Sixteen samples a step, on a model that hardly moves."""
    part = trainable(accumulation_steps=accumulation_steps, global_batch_size=16)
    return run_sweep(
        part,
        sweep_plan(**ALMOST_STILL),
        planned_batches(accumulation_steps=accumulation_steps, global_batch_size=16),
        context=rank_context(),
        probe=GradientProbe(part.parameters),
    )


def unequal_step() -> float | None:
    part = trainable(objective=unequal_objective, accumulation_steps=2)
    result = run_sweep(
        part,
        sweep_plan(lrs=[1e-9]),
        unequal_batches,
        context=rank_context(),
        probe=GradientProbe(part.parameters),
    )
    return result.steps[0].gradient_variance


def everything() -> dict[str, Any]:
    """All that two ranks are asked for, in one launch."""
    assert dist.get_world_size() == 2
    return {
        "still": {accumulation: still_sweep(accumulation) for accumulation in (1, 4)},
        "unequal": unequal_step(),
        "bits": {
            (name, accumulation): [
                sweep_under(DDP_SETTINGS[name], probed=probed, accumulation_steps=accumulation).steps
                for probed in (True, False)
            ]
            for name, accumulation in STEPS_OF_SETTINGS
        },
    }


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("noise")
    return on_ranks(everything, 2, folder)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_ranks_give_the_noise_scale_of_single_samples(by_rank: list[dict[str, Any]], accumulation: int) -> None:
    """The truth is known sample by sample; the interval holds it, and says at most twice and at least half of it."""
    _, truth = brute_force(small_model())
    suggestion = Suggestion(lr=1.0, method="auto", verdict=Verdict.OK, reason="", interval=(1.0, 1.0))
    for rank in by_rank:
        found = noise_scale(rank["still"][accumulation].steps, suggestion, beta=0.9, global_batch_size=16)
        assert found.low is not None
        assert found.high is not None
        assert truth / 2 < found.low < truth < found.high < truth * 2
    mine, other = (rank["still"][accumulation].steps for rank in by_rank)
    assert [step.gradient_variance for step in mine] == [step.gradient_variance for step in other]


def test_unequal_items_on_unequal_ranks(by_rank: list[dict[str, Any]]) -> None:
    """Four parts of 3, 5, 1 and 7 samples, by hand."""
    model, (inputs, targets) = small_model(), regression_data()
    sizes = [size for rank in UNEQUAL_ITEMS for size in rank]
    gradients, start = [], 0
    for size in sizes:
        model.zero_grad()
        squared_error(model, (inputs[start : start + size], targets[start : start + size])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        start += size
    whole = torch.stack([size * g for size, g in zip(sizes, gradients, strict=True)]).sum(dim=0) / 16
    squares = sum(size * float(g.square().sum()) for size, g in zip(sizes, gradients, strict=True)) / 16
    expected = (squares - float(whole.square().sum())) * 16 / (4 - 1)
    assert [rank["unequal"] for rank in by_rank] == pytest.approx([expected] * 2, rel=1e-9)


@pytest.mark.parametrize(("name", "accumulation"), STEPS_OF_SETTINGS)
def test_the_averaged_gradient_keeps_every_bit(by_rank: list[dict[str, Any]], name: str, accumulation: int) -> None:
    """What is measured is not moved: losses and gradient norms up to the divergence are those without a probe."""
    for rank in by_rank:
        probed, plain = ([(s.loss, s.grad_norm) for s in steps] for steps in rank["bits"][name, accumulation])
        assert probed == plain
        assert len(plain) > 10


def test_ddp_settings_make_no_difference(by_rank: list[dict[str, Any]]) -> None:
    """Views into buckets, unused parameters and a static graph change who holds a gradient, not its norm."""
    variances = {name: [s.gradient_variance for s in by_rank[0]["bits"][name, 1][0][:10]] for name in DDP_SETTINGS}
    for name in DDP_SETTINGS:
        assert variances[name] == pytest.approx(variances["default"], rel=1e-4)
    assert min(variances["default"]) > 0
