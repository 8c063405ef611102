"""Whether all ranks read the same data set: their shards are cut from one permutation of it."""

from __future__ import annotations

import hashlib
from typing import Any

from lrrunner.sweep.data_loading import Datasets
from lrrunner.sweep.fingerprint import fingerprint
from lrrunner.training.collectives import Collective

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
