"""What one rank of the real program does, seen from inside it."""

from __future__ import annotations

import gc
import os
import socket
import sys
import weakref
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.multiprocess.ranks import on_ranks


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def whole_program(folder: str, port: int) -> dict[str, Any]:
    """Run the command line on this rank; returns how many DDP objects were alive at the end of the process group."""
    from lrrunner.cli.main import run

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    wrapped: list[weakref.ref[DistributedDataParallel]] = []
    alive_at_the_end: list[int] = []
    original_init = DistributedDataParallel.__init__
    original_destroy = dist.destroy_process_group

    def init(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        wrapped.append(weakref.ref(self))
        original_init(self, *args, **kwargs)

    def destroy(*args: Any, **kwargs: Any) -> None:
        alive_at_the_end.append(sum(ref() is not None for ref in wrapped))
        original_destroy(*args, **kwargs)

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
    dist.destroy_process_group = destroy
    gc.disable()  # only what the program collects itself counts
    code = run(["run.dir=run", "sweep.num_steps=12"])
    return {
        "code": code,
        "num_wrapped": len(wrapped),
        "alive_at_the_end": alive_at_the_end,
        "heavy": [name for name in ("mlflow", "matplotlib") if name in sys.modules],
    }


def test_ddp_is_freed_before_its_process_group_and_only_rank_0_imports_mlflow(tmp_path: Path) -> None:
    """DDP outliving the process group aborts gloo at exit; MLflow costs every rank a second and 150 MB."""
    first, second = on_ranks(whole_program, 2, tmp_path, str(tmp_path), free_port(), group=False, bare=True)
    for rank in (first, second):
        assert rank["code"] == 0
        assert rank["num_wrapped"] == 1
        assert rank["alive_at_the_end"] == [0]
    assert first["heavy"] == ["mlflow", "matplotlib"]
    assert second["heavy"] == []
