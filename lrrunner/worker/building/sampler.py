"""``data.sampler``: from what a user's sampler gives to the order of each epoch, which the batch plan shards."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import BatchSampler, DistributedSampler

from lrrunner.core.batch_plan import BatchPlan, EpochOrder, IndexArray, global_batches, listed_order, weighted_order
from lrrunner.library.loaders.restarted_loader import seed_generators
from lrrunner.training.state.snapshot import RngState, seed_rngs

WHAT_IT_GIVES = (
    "data.sampler must give a torch Sampler of sample indices, one weight per sample (floats), or the indices of an "
    "epoch (integers)"
)

CPU = torch.device("cpu")


def sample_order(made: Any, dataset: Any, *, global_batch_size: int, seed: int) -> EpochOrder:
    """The order of each epoch, from what ``data.sampler`` made of the training set.

    Args:
        made: A sampler, or a sequence of weights or indices.
        dataset: The training set.
        global_batch_size: Samples that an epoch must hold at least.
        seed: Seed of the sweep.

    Raises:
        ValueError: the sampler cannot be sharded.
    """
    num_samples = len(dataset)
    order = _sampled_order(made, dataset) if _array(made) is None else _array_order(_array(made), num_samples)
    first = order(dataset_size=num_samples, seed=seed, repeat=0, epoch=0)
    if not np.array_equal(first, order(dataset_size=num_samples, seed=seed, repeat=0, epoch=0)):
        raise ValueError(
            "data.sampler must give the same order for the same random numbers, got two different ones; draw from the "
            "generators of torch, numpy or Python, which are seeded, or keep a torch.Generator as an attribute"
        )
    plan = BatchPlan(dataset_size=num_samples, global_batch_size=global_batch_size, order=order)
    next(global_batches(plan, seed=seed, repeat=0))
    return order


def _array(made: Any) -> npt.NDArray[Any] | None:
    """The values of a tensor, an array or a sequence of numbers; None for a sampler."""
    if isinstance(made, torch.Tensor):
        return made.detach().cpu().numpy()
    return np.asarray(made) if isinstance(made, np.ndarray | list | tuple | range) else None


def _array_order(values: Any, num_samples: int) -> EpochOrder:
    if values.ndim == 1 and np.issubdtype(values.dtype, np.floating):
        return weighted_order(_checked_weights(values.astype(np.float64), num_samples), num_samples=num_samples)
    if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
        return listed_order(_checked_indices(values.astype(np.int64), num_samples))
    raise ValueError(f"{WHAT_IT_GIVES}, got an array of {values.dtype} of shape {values.shape}; give one of these")


def _checked_weights(weights: npt.NDArray[np.float64], num_samples: int) -> npt.NDArray[np.float64]:
    rule = f"data.sampler must give one weight for each of the {num_samples} samples of data.train"
    if len(weights) != num_samples:
        raise ValueError(f"{rule}, got {len(weights)}; for the indices of an epoch, give integers")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise ValueError(
            f"{rule}, finite and none below 0, got {weights[bad[0]]:g} for sample {bad[0]}; give it 0 to leave it out"
        )
    if not weights.any():
        raise ValueError(f"{rule}, some above 0, got zeros only; raise those of the samples to train on")
    return weights


def _checked_indices(indices: IndexArray, num_samples: int) -> IndexArray:
    bad = indices[(indices < 0) | (indices >= num_samples)]
    if len(bad):
        raise ValueError(
            f"data.sampler must give indices from 0 to {num_samples - 1}, the samples of data.train, got {bad[0]}; "
            "give indices of the data set that it is called with"
        )
    return indices


def _sampled_order(sampler: Any, dataset: Any) -> EpochOrder:
    """Iterate a copy of the sampler for each epoch, with every generator seeded, and restore random numbers."""
    _check_sampler(sampler)
    num_samples = len(dataset)
    limit = num_samples  # without a length it may be endless
    with suppress(TypeError, NotImplementedError):
        limit = len(sampler)

    def order(*, dataset_size: int, seed: int, repeat: int, epoch: int) -> IndexArray:
        rng = RngState.capture(CPU)
        try:
            seed_rngs(seed, repeat, epoch)
            drawn = _copied(sampler, dataset)
            seed_generators(drawn, seed, repeat, epoch)
            if hasattr(drawn, "set_epoch"):
                drawn.set_epoch(repeat + epoch)
            return _checked_indices(_indices(itertools.islice(drawn, limit)), dataset_size)
        finally:
            rng.restore(CPU)

    return order


def _check_sampler(sampler: Any) -> None:
    """Refuse what gives no whole epoch of single indices.

    Raises:
        ValueError: it gives no epoch of sample indices, or only a rank's share of one.
    """
    name = type(sampler).__name__
    wrong = ""
    if isinstance(sampler, DistributedSampler):
        wrong = f"a {name}, which gives a rank's share; lrrunner shards the data, so name the sampler of one process"
    elif isinstance(sampler, BatchSampler):
        wrong = f"a {name}; lrrunner cuts the batches, so give the sampler inside of it"
    elif hasattr(sampler, "__next__") or not hasattr(sampler, "__iter__"):
        wrong = f"{name}; give an object that can be iterated once for each epoch"
    if wrong:
        raise ValueError(f"{WHAT_IT_GIVES}, got {wrong}")


def _copied(sampler: Any, dataset: Any) -> Any:
    """A copy that shares the dataset; the sampler itself where it cannot be copied."""
    with suppress(Exception):  # whatever a user's attributes raise
        return copy.deepcopy(sampler, {id(dataset): dataset})
    return sampler


def _indices(drawn: Iterable[Any]) -> IndexArray:
    found = []
    for index in drawn:
        try:
            found.append(operator.index(index))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{WHAT_IT_GIVES}, got a sampler of {type(index).__name__}; give indices, one at a time"
            ) from error
    return np.array(found, dtype=np.int64)
