"""Host memory of snapshot and restore under FSDP2, by rank: python scripts/benchmarks/fsdp_memory.py [--ranks 2].

Each gloo rank shards the same model (Linear blocks in a list), takes two AdamW steps, and then saves and restores it
twice: with lrrunner's Snapshot, of its own shards, and with torch's state dicts gathered on rank 0, as most tools save.
The peak is VmHWM of /proc/self/status, reset before each phase; what is printed is how far it rises above what the rank
held before. The state of a shard is its parameters, gradients and both moments of AdamW.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import platform
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lrrunner.training.fsdp import local_part, shard
from lrrunner.training.state.snapshot import Snapshot

MIB = 1 << 20


class Blocks(nn.Module):
    """Linear blocks one after the other."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the same width."""
        for block in self.blocks:
            x = block(x)
        return x


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=16)
    arguments = parser.parse_args()
    versions = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"{versions}; {arguments.blocks} blocks of width {arguments.width}, {arguments.ranks} ranks\n")
    print("| what | rank | its shard's state, MiB | peak while saving | held by the copy | peak while restoring |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        context = get_context("spawn")
        queue = context.Queue()
        ranks = [
            context.Process(target=measured, args=(rank, arguments, folder, queue)) for rank in range(arguments.ranks)
        ]
        for process in ranks:
            process.start()
        rows = [row for _ in ranks for row in queue.get()]
        for process in ranks:
            process.join()
            assert process.exitcode == 0
    for what, rank, *sizes in sorted(rows):
        print(f"| {what} | {rank} | {' | '.join(f'{size / MIB:.0f}' for size in sizes)} |")


def measured(rank: int, arguments: argparse.Namespace, folder: str, queue: Any) -> None:
    """One rank's rows: what, rank, bytes of its state, rise while saving, held, rise while restoring."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=arguments.ranks)
    torch.manual_seed(0)
    width = arguments.width
    model = Blocks(width, arguments.blocks)
    shard(model, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, width)).square().mean().backward()
        optimizer.step()
    tensors = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    tensors += [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    size = sum(local_part(tensor).nbytes for tensor in tensors)
    del tensors
    rows = []
    for what, save in (("Snapshot, each rank its shards", snapshot), ("state dicts gathered on rank 0", gathered)):
        dist.barrier()
        before, (peak, restore) = resident(), with_peak(functools.partial(save, model, optimizer))
        held = resident() - before
        dist.barrier()
        at_rest = resident()
        restoring, _ = with_peak(restore)
        rows.append((what, rank, size, peak - before, held, restoring - at_rest))
        del restore
        gc.collect()
    queue.put(rows)
    del model, optimizer
    gc.collect()
    dist.destroy_process_group()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Save; returns what restores."""
    return Snapshot(model, optimizer).restore


def gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Save the whole on rank 0; returns what gives every rank its shards back."""
    saving = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=saving)
    loading = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)

    def restore() -> None:
        set_model_state_dict(model, weights, options=loading)
        set_optimizer_state_dict(model, optimizer, state, options=loading)

    return restore


def resident() -> int:
    """Bytes of memory that this process holds now, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def with_peak(action: Callable[[], Any]) -> tuple[int, Any]:
    """The most that this process held while it acted, and the result."""
    resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    result = action()
    return _status("VmHWM"), result


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
