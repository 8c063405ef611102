"""The only module that communicates. A world of one needs no communication; callers do not distinguish."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from lrrunner.errors import ConfigError


class Collective(Protocol):
    """The ranks of one job, and how they communicate."""

    rank: int
    world_size: int

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place, same bits on every rank. Every rank must call this, in the same order."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in rank order, on every rank. Every rank must call this, in the same order."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank. Every rank must call this, in the same order."""
        ...


class SerialCollective:
    """A world of one rank."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value


class ProcessGroupCollective:
    """The ranks of the default process group of ``torch.distributed``."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place. Every rank must call this, in the same order."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order. Every rank must call this, in the same order."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value. Every rank must call this, in the same order."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def collective_for_world() -> Collective:
    """The collective of the world this process belongs to."""
    return ProcessGroupCollective() if dist.is_available() and dist.is_initialized() else SerialCollective()


def agree(collective: Collective, errors: list[str]) -> None:
    """Raise the errors of all ranks on every rank; return if there are none. Every rank must call this.

    Raises:
        ConfigError: on every rank, with the errors of all.
    """
    by_rank: list[list[str]] = collective.gather(errors)
    found: dict[str, list[int]] = {}
    for rank, messages in enumerate(by_rank):
        for message in messages:
            found.setdefault(message, []).append(rank)
    if found:
        raise ConfigError(
            message if ranks[0] == 0 else f"{message} (on rank {', '.join(map(str, ranks))})"
            for message, ranks in found.items()
        )


def set_timeout(timeout_s: float) -> None:
    """Limit every later collective to ``timeout_s`` seconds.

    The world is created with a long limit, since building a data set or compiling a model may be slow at first.
    """
    if dist.is_available() and dist.is_initialized():
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s))


def first_failure(cause: str, *, job: int = 0) -> str:
    """The cause that the first failing rank of a job reported; ``cause`` itself if this rank is the first.

    Not a collective: a failing rank calls it alone, before its exit breaks the collectives of other ranks. These then
    find here which rank failed first.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return cause
    try:
        store = dist.distributed_c10d._get_default_store()
        stored: bytes = store.compare_set(f"lrrunner/first_failure/{job}", "", cause)
    except (RuntimeError, ValueError):  # the store was in a rank that has exited
        return cause
    return stored.decode()
