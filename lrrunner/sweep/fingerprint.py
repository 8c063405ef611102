"""A digest of a few samples, by which ranks notice that they do not hold the same data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from lrrunner.sweep.streams import StreamPass, is_stream
from lrrunner.training.state.snapshot import seed_rngs


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
