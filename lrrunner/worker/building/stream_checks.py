"""Whether an iterable data set can be read as often as a sweep needs, and by every rank."""

from __future__ import annotations

import logging
from typing import Any

from lrrunner.sweep.streams import StreamPass

logger = logging.getLogger(__name__)


def stream_errors(name: str, dataset: Any, *, num_samples: int, seed: int) -> list[str]:
    """Why an iterable data set cannot be used; reads its first samples, and begins it a second time.

    Args:
        name: ``data.train`` or ``data.val``, for messages.
        dataset: Has no indices.
        num_samples: Samples that it must give at least.
        seed: Seed of the sweep.
    """
    kind = type(dataset).__name__
    if hasattr(dataset, "__next__") or not hasattr(dataset, "__iter__"):
        return [
            f"{name} must be a map-style or an iterable data set, got {kind}; return an object with a length and an "
            "index, or a torch.utils.data.IterableDataset, which starts again each time it is iterated"
        ]
    try:
        _, first = StreamPass(dataset, seed).read(num_samples, keep=lambda position: False)
        _, again = StreamPass(dataset, seed).read(1)
    except Exception as error:
        logger.info("%s cannot be read", name, exc_info=error)
        return [f"{name} must give samples, got {type(error).__name__}: {error}; correct what {kind} reads"]
    if first < num_samples:
        how_many = "samples" if num_samples == 1 else f"at least one global batch of {num_samples} samples"
        way_out = "check its files" if first == 0 else "lower data.global_batch_size"
        return [f"{name} must give {how_many} each time it is iterated, got {first or 'none'}; {way_out}"]
    if not again:
        return [
            f"{name} must start again each time it is iterated, got no samples from {kind} the second time; open its "
            "source in __iter__"
        ]
    return []
