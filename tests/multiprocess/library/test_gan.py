"""Sweeping the generator of a GAN leaves the discriminator as it was, on one and two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lrrunner
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import regression_data


def wrapped(module: nn.Module) -> nn.Module:
    """The module, wrapped for the world this process is in."""
    return DistributedDataParallel(module) if dist.is_initialized() else module


def networks() -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, both with batch norm."""
    torch.manual_seed(3)
    generator = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    discriminator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
    return wrapped(generator), wrapped(discriminator)


def bits(*modules: nn.Module) -> list[Any]:
    """Parameters, buffers, gradients and flags."""
    state = [tensor.tolist() for module in modules for tensor in module.state_dict().values()]
    gradients = [None if p.grad is None else p.grad.tolist() for module in modules for p in module.parameters()]
    return [state, gradients, [part.training for module in modules for part in module.modules()]]


class Teacher(nn.Module):
    """A moving average, which the loss itself updates."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)


def swept_generator(*, monitored: bool) -> tuple[list[Any], ...]:
    """The discriminator's bits before and after two sweeps of the generator, and their losses."""
    generator, discriminator = networks()
    registry = {"teacher": Teacher()}
    nets = [discriminator]
    inputs = regression_data(torch.float32)[0]
    first = 96 * (dist.get_rank() if dist.is_initialized() else 0)
    batches = [inputs[i : i + 24] for i in range(first, first + 96, 24)]
    nets[0](torch.randn(6, 4)).sum().backward()  # the discriminator is in the middle of its own step

    def loss_fn(model: nn.Module, noise: torch.Tensor) -> torch.Tensor:
        fake = model(noise)
        teacher = next(iter(registry.values()))
        teacher.average.data.lerp_(fake.mean(0).detach(), 0.1)
        return -nets[0](fake).mean() + (fake.mean(0) - teacher.average).square().mean()

    options: dict[str, Any] = {"num_steps": 20, "auto_range": False, "repeats": 2, "modules": [registry["teacher"]]}
    if monitored:
        options |= {"monitor": "val", "val_loader": batches[:2], "confirm": 28}
    optimizer = torch.optim.Adam(generator.parameters())
    before = bits(discriminator, registry["teacher"])
    results = [lrrunner.range_test(None, generator, optimizer, batches, loss_fn, **options) for _ in range(2)]
    after = bits(discriminator, registry["teacher"])
    losses = [[(step.loss, step.val_loss) for step in result.steps] for result in results]
    return before, after, losses[0], losses[1]


def both() -> list[Any]:
    """A plain sweep, and one with everything that evaluates."""
    torch.set_num_threads(1)
    return [swept_generator(monitored=monitored) for monitored in (False, True)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_discriminator_is_as_before_bit_for_bit(world_size: int, tmp_path: Path) -> None:
    """Batch norm statistics, gradients and flags; and so a second sweep finds the same."""
    for cases in on_ranks(both, world_size, tmp_path, group=world_size > 1):
        for before, after, first, second in cases:
            assert after == before
            assert first == second
            assert len(first) > 10
