"""Whether all ranks read the same data set: their shards are cut from one permutation of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from lrrunner.sweep.data_loading import Datasets
from lrrunner.sweep.streams import StreamPass, is_stream
from lrrunner.training.collectives import Collective
from lrrunner.training.snapshot import seed_rngs

UNKNOWN_LENGTH = -1


def data_errors(collective: Collective, dataset: Any, *, num_samples: int | None) -> list[str]:
    """What is different about the training set on some rank. Every rank must call this.

    Args:
        collective: The world this rank belongs to.
        dataset: This rank's training set; None where it could not be built.
        num_samples: Samples in it; None if it is iterable.
    """
    length = UNKNOWN_LENGTH if num_samples is None else num_samples
    own = (None, None) if dataset is None else (length, fingerprint(dataset))
    by_rank = collective.gather(own)
    lengths = [length for length, _ in by_rank]
    if None in lengths:
        return []
    if len(set(lengths)) > 1:
        shown = ", ".join(f"{length} on rank {rank}" for rank, length in enumerate(lengths[:8]))
        return [
            f"data.train must hold the same samples on every rank, got {shown} samples; let every rank read the whole "
            "set, lrrunner splits it"
        ]
    prints = [print_ for _, print_ in by_rank]
    bad = [str(rank) for rank, print_ in enumerate(prints) if print_ != prints[0]]
    if not bad or None in prints:
        return []
    way_out = "sort its files" if num_samples is not None else "leave its own split by rank out, since lrrunner splits"
    return [
        f"data.train must hold the same samples in the same order on every rank, got others on rank {', '.join(bad)}; "
        f"{way_out}, or draw its order from torch's, numpy's or Python's generator, which are seeded"
    ]


def order_errors(collective: Collective, datasets: Datasets | None, *, seed: int) -> list[str]:
    """Whether ``data.sampler`` gives other epochs on some rank. Every rank must call this.

    Args:
        collective: The world this rank belongs to.
        datasets: This rank's; None after an error.
        seed: Seed of the sweep.
    """
    prints = collective.gather(None if datasets is None else _order_fingerprint(datasets, seed))
    bad = [str(rank) for rank, print_ in enumerate(prints) if print_ != prints[0]]
    if not bad or None in prints:
        return []
    return [
        f"data.sampler must give the same indices in the same order on every rank, got others on rank {', '.join(bad)}"
        "; leave the shards to lrrunner, and draw from torch's, numpy's or Python's generator, which are seeded"
    ]


def _order_fingerprint(datasets: Datasets, seed: int) -> str:
    digest = hashlib.sha256()
    assert datasets.num_samples is not None
    for epoch in range(2):
        order = datasets.order(dataset_size=datasets.num_samples, seed=seed, repeat=0, epoch=epoch)
        digest.update(order.tobytes())
    return digest.hexdigest()


def fingerprint(dataset: Any) -> str | None:
    """Digest of the first and the last sample; None where these cannot be read, or differ from one time to the next.

    Random augmentation that draws from the seeded generators gives the same digest twice. Of an iterable data set, it
    is the digest of the first sample, which may differ from one time to the next, but not from rank to rank.
    """
    if is_stream(dataset):
        return _digest_of(lambda: StreamPass(dataset, 0).read(1)[0])
    digests = set()
    for _ in range(2):
        seed_rngs(0)
        digests.add(_digest_of(lambda: [dataset[0], dataset[len(dataset) - 1]]))
    return digests.pop() if len(digests) == 1 else None


def _digest_of(read: Callable[[], Any]) -> str | None:
    digest = hashlib.sha256()
    try:
        _update(digest, read())
    except Exception:  # noqa: BLE001 - whatever a data set raises comes again where it is read, with its message
        return None
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Add a sample to a digest.

    Raises:
        TypeError: it holds something that has no stable bytes.
    """
    if isinstance(value, torch.Tensor):
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            digest.update(repr(key).encode())
            _update(digest, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _update(digest, part)
    elif isinstance(value, str | bytes | bool | int | float | np.generic | None):
        digest.update(repr(value).encode())
    else:
        raise TypeError(type(value).__name__)
