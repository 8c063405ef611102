"""Whether the loaders of all ranks hold data that belong together."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from lrrunner.library.loaders.restarted_loader import loaders_and_samplers, num_batches
from lrrunner.sweep.fingerprint import fingerprint
from lrrunner.sweep.streams import is_stream
from lrrunner.training.collectives import Collective

MAX_SHOWN = 8
"""Ranks whose number of samples is shown."""


class _LoaderData(NamedTuple):
    """What a rank's loader reads.

    Attributes:
        is_split: Whether its sampler takes this rank's share of a data set that all ranks hold.
        num_samples: Samples in its data set.
        num_batches: Batches in an epoch; None if it does not know.
        digest: Of some samples, where it is split and they can be compared.
    """

    is_split: bool
    num_samples: int
    num_batches: int | None
    digest: str | None


def agreement_errors(collective: Collective, loader: Any, *, name: str = "train_loader") -> list[str]:
    """Why the loaders of different ranks do not belong together. Every rank must call this.

    A sampler that takes a rank's share (``DistributedSampler``, Accelerate's) cuts it from a permutation of the data
    set's length: all ranks must hold the same one. Without such a sampler, each rank may hold a shard of its own, as
    long as all have the same number of batches: otherwise a rank would wait for the others at the end of each epoch of
    the training. Iterable data, and loaders that are no torch loaders, are exempt. This draws random numbers.

    Args:
        collective: The world this rank belongs to.
        loader: This rank's loader.
        name: Its argument.
    """
    by_rank: list[_LoaderData | None] = collective.gather(_loader_data(loader) if collective.world_size > 1 else None)
    known = [data for data in by_rank if data is not None]
    if len(known) < len(by_rank):
        return []
    shown = ", ".join(f"{data.num_samples} on rank {rank}" for rank, data in enumerate(known[:MAX_SHOWN]))
    if not any(data.is_split for data in known):
        lengths = {data.num_batches for data in known}
        if name != "train_loader" or len(lengths) == 1 or None in lengths:
            return []
        return [
            f"{name} must give as many batches on every rank, got data sets of {shown} samples; give every rank the "
            "whole data set and a DistributedSampler, or shards of one length"
        ]
    if len({data.num_samples for data in known}) > 1:
        return [
            f"{name} must read one data set on all ranks, since its sampler splits it by rank, got {shown} samples; "
            "let every rank read the whole data set"
        ]
    others = [str(rank) for rank, data in enumerate(known) if data.digest != known[0].digest]
    if not others or any(data.digest is None for data in known):
        return []
    return [
        f"{name} must read the same samples in the same order on all ranks, since its sampler splits them by rank, got "
        f"others on rank {', '.join(others)}; sort the files, or leave the sampler out if each rank has its own shard"
    ]


def _loader_data(loader: Any) -> _LoaderData | None:
    """What a loader reads; None where that cannot be compared."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or is_stream(dataset) or _is_dispatcher(loader):
        return None
    try:
        num_samples = len(dataset)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a user's data set may raise anything
        return None
    is_split = any(_share(part) > 1 for part in loaders_and_samplers(loader))
    return _LoaderData(is_split, num_samples, num_batches(loader), fingerprint(dataset) if is_split else None)


def _share(sampler: Any) -> int:
    """Among how many ranks a sampler splits its data set: in the words of torch and most others, or of Accelerate."""
    numbers = [getattr(sampler, name, 1) for name in ("num_replicas", "num_processes")]
    return max(number for number in (1, *numbers) if isinstance(number, int))


def _is_dispatcher(loader: Any) -> bool:
    """Whether rank 0 alone reads, and sends the others their share."""
    return type(loader).__name__ == "DataLoaderDispatcher"
