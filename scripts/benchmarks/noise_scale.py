"""What `sweep.noise_scale` costs a step, in one run: python scripts/benchmarks/noise_scale.py [--repeats 7].

Sweeps with and without the probe run alternately in the same ranks (gloo, one thread a rank), on the same model and the
same data; the ratio is that of neighbouring sweeps. Learning rates are tiny, so that all of them do the same work. Time
is that of the processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from contextlib import nullcontext
from itertools import pairwise
from itertools import repeat as endlessly
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrrunner.core.stop_rules import stop_rule
from lrrunner.tasks.models import Mlp
from lrrunner.training.collectives import collective_for_world
from lrrunner.training.engine import RankContext, run_sweep
from lrrunner.training.step.gradient_probe import GradientProbe
from lrrunner.training.sweep_run import SweepPlan
from lrrunner.training.trainable import Trainable

WORLD_SIZE = 2
CASES = (("1.0e6 parameters in 6 tensors", 960, 2), ("1.0e6 parameters in 42 tensors", 225, 20))
BATCHES = (16, 64, 256)


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| model | samples a rank | accumulation | without, ms a step | with, ms a step | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            measure, (folder, arguments.repeats, arguments.steps), nprocs=WORLD_SIZE
        )


def measure(rank: int, folder: str, repeats: int, steps: int) -> None:
    """All rows, on one rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    for name, width, depth in CASES:
        for batch_size in BATCHES:
            for accumulation in (1, 4) if batch_size == 64 else (1,):
                pairs = measured_pairs(width, depth, batch_size, accumulation, repeats, steps)
                if rank == 0:
                    print(f"| {name} | {batch_size} | {accumulation} | {row(pairs)} |", flush=True)
    dist.destroy_process_group()


def measured_pairs(
    width: int, depth: int, batch_size: int, accumulation: int, repeats: int, steps: int
) -> list[tuple[float, float]]:
    """Processor seconds a step without and with the probe, one pair a repeat; the first pair only warms up."""
    torch.manual_seed(0)
    model = Mlp(in_features=64, hidden_features=width, num_hidden=depth, num_classes=10)
    wrapped = DistributedDataParallel(model)
    trainable = Trainable(
        model=wrapped,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-4),
        objective=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        micro_batch_size=batch_size // accumulation,
        accumulation_steps=accumulation,
        no_sync=wrapped.no_sync if accumulation > 1 else nullcontext,
    )
    batch = torch.randn(batch_size // accumulation, 64), torch.randint(10, (batch_size // accumulation,))
    pairs = [
        (seconds_a_step(trainable, batch, steps, probed=False), seconds_a_step(trainable, batch, steps, probed=True))
        for _ in range(repeats + 1)
    ]
    return pairs[1:]


def seconds_a_step(trainable: Trainable, batch: Any, steps: int, *, probed: bool) -> float:
    """The median over the steps of one sweep, of the time that this rank's threads had a processor."""
    lr_sweep = SweepPlan(
        lrs=[1e-9] * steps, beta=0.9, new_stop_rule=lambda: stop_rule("range", factor=1e9, num_steps=steps)
    )
    times: list[float] = []
    run_sweep(
        trainable,
        lr_sweep,
        lambda repeat, first_step=0: endlessly(batch),
        context=RankContext(collective=collective_for_world()),
        on_step=lambda step: times.append(time.process_time()),
        probe=GradientProbe(trainable.parameters) if probed else None,
    )
    return statistics.median(after - before for before, after in pairwise(times))


def row(pairs: list[tuple[float, float]]) -> str:
    """Medians; the spread of the ratio is that of the pairs."""
    without, with_probe = (statistics.median(pair[i] for pair in pairs) * 1000 for i in (0, 1))
    ratios = [pair[1] / pair[0] for pair in pairs]
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"{without:.2f} | {with_probe:.2f} | {spread}"


if __name__ == "__main__":
    main()
