"""What a step costs on one rank of many: python scripts/benchmarks/overhead_ranks.py [--repeats 5].

One process trains a small model as rank 0 of a world whose other ranks report what it reports, so that everything but
the network is that of so many ranks: the table, its reading, and every decision. CPU time from one forward pass to the
next; worlds take turns, so that a busy machine slows all of them down.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lrrunner.core.stop_rules import stop_rule
from lrrunner.training.engine import RankContext, run_sweep
from lrrunner.training.sweep_run import SweepPlan
from lrrunner.training.trainable import Trainable

WORLD_SIZES = (1, 8, 256, 1024, 4096)


class EqualRanks:
    """A world in which every rank reports what this one does."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill the other rows of a table; what has one row is the sum already."""
        if tensor.ndim == 2:
            tensor[1:] = tensor[0]
        else:
            tensor *= self.world_size
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank."""
        return [value] * self.world_size

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value


def seconds_per_step(world_size: int, *, num_steps: int) -> float:
    """CPU seconds from the first forward pass to the last, per step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    batch = (torch.randn(32, 64), torch.randint(10, (32,)))
    stamps: list[float] = []

    def objective(model: nn.Module, batch: Any) -> torch.Tensor:
        stamps.append(time.process_time())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def batches(repeat: int, first_step: int = 0) -> Iterator[Any]:
        return itertools.repeat(batch)

    plan = SweepPlan(
        lrs=[1e-4] * num_steps, beta=0.9, new_stop_rule=lambda: stop_rule("range", factor=2.0, num_steps=num_steps)
    )
    trainable = Trainable(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-4),
        objective=objective,
        micro_batch_size=32,
    )
    result = run_sweep(trainable, plan, batches, context=RankContext(collective=EqualRanks(world_size)))
    assert len(result.steps) == num_steps
    return (stamps[-1] - stamps[0]) / (num_steps - 1)


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [[seconds_per_step(n, num_steps=arguments.steps) for n in WORLD_SIZES] for _ in range(arguments.repeats)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n")
    print("| ranks | ms a step | ms more than one rank |")
    print("|---|---|---|")
    for world_size, column in zip(WORLD_SIZES, zip(*found, strict=True), strict=True):
        more = statistics.median(own - row[0] for own, row in zip(column, found, strict=True))
        print(f"| {world_size} | {statistics.median(column) * 1e3:.2f} | {more * 1e3:.2f} |")


if __name__ == "__main__":
    main()
