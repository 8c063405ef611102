"""Run a function on real gloo ranks; every rank's traceback reaches the test."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from tests.fork_server import fork_context

DEADLINE_S = 180.0


def on_ranks(
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    *arguments: Any,
    group: bool = True,
    bare: bool = False,
) -> list[Any]:
    """Call ``function(*arguments)`` on every rank and return the results in rank order.

    Each call has a world of its own, whose processes are forked from a server that has imported torch.

    Args:
        function: Importable; with ``group`` the default process group is up when it is called.
        world_size: Number of ranks.
        folder: For the rendezvous and the results.
        arguments: Picklable.
        group: Make and destroy the process group around the call.
        bare: Start processes that have imported nothing yet, as a launcher does.

    Raises:
        AssertionError: with the tracebacks of all ranks that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context: ForkServerContext | SpawnContext = get_context("spawn") if bare else fork_context()
    processes = [
        context.Process(target=_rank_main, args=(function, rank, world_size, folder, arguments, group))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + DEADLINE_S
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
        processes[rank].join()
    outcomes = [_outcome(folder / f"{rank}.pickle") for rank in range(world_size)]
    failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
    assert not late, f"ranks {late} were still running after {DEADLINE_S} s\n" + "\n".join(failures)
    assert not failures, "\n".join(failures)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world_size, f"exit codes {codes}"
    return [value for _, value in outcomes]


def _outcome(path: Path) -> tuple[bool, Any]:
    return pickle.loads(path.read_bytes()) if path.exists() else (False, "left without a result")


def _rank_main(
    function: Callable[..., Any], rank: int, world_size: int, folder: Path, arguments: tuple[Any, ...], group: bool
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    if group:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=30),
        )
    try:
        outcome: tuple[bool, Any] = (True, function(*arguments))
    except BaseException:  # noqa: BLE001 - the test wants to see it, whatever it is
        outcome = (False, traceback.format_exc())
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
    if group and dist.is_initialized():
        import gc

        gc.collect()
        if outcome[0]:
            dist.destroy_process_group()
