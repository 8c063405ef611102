"""A user's data loader, read from its start as often as a sweep needs, without changing it."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lrrunner.core.batch_plan import TRIAL_DATA_ORDER
from lrrunner.training.collectives import Collective

MUTABLE_ATTRIBUTES = ("sampler", "batch_sampler", "generator", "synchronized_generator")
"""Attributes of a loader whose values change while it is read."""

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class RestartedLoader:
    """Endless micro-batches from a loader that is restarted whenever it ends, on all ranks at the same step.

    For loaders of torch and Accelerate it reads a twin with samplers, generators and counters of its own. The twin's
    generators are seeded by (seed, repeat), the same on every rank; samplers that follow an epoch start with the
    loader's current one. So each repeat has another data order, and the same repeat of a later call has the same order
    again. The position of an iterable dataset is its own and is not restored.

    Every rank must construct one: ranks agree on the number of batches after which all of them restart. Where a rank
    does not know its number (iterable datasets), each rank restarts alone, so reading must not communicate there.

    Args:
        loader: An iterable of batches that can be iterated again, prepared by Accelerate or not.
        collective: The world this rank belongs to.
        seed: Fixes the order of generators.
    """

    def __init__(self, loader: Any, *, collective: Collective, seed: int) -> None:
        self._loader, self._seed = loader, seed
        lengths = collective.gather(num_batches(loader))
        self._num_batches: int | None = None if None in lengths else min(lengths)

    def __call__(self, repeat: int, first_step: int = 0) -> Iterator[Any]:
        """The micro-batches of one repeat, from its first optimizer step on."""
        assert first_step == 0, "a user's loader cannot be entered in the middle"
        loader = self._loader
        if isinstance(loader, DataLoader):
            loader = twin(loader)
            seed_generators(loader, self._seed, repeat)
            if self._num_batches is None:
                vars(loader)["rng_types"] = None  # else Accelerate would communicate where a rank restarts alone
        set_epoch = _epoch_setter(loader)
        for epoch in itertools.count(repeat % TRIAL_DATA_ORDER):  # a dataset may depend on its epoch
            set_epoch(epoch)
            is_empty = True
            for batch in itertools.islice(iter(loader), self._num_batches):
                is_empty = False
                yield batch
            if is_empty:
                raise ValueError("train_loader must give batches each time it is iterated, got none; check its dataset")


def loader_errors(loader: Any, *, name: str = "train_loader") -> list[str]:
    """Why a loader cannot be restarted, or not be copied; empty where it can.

    Args:
        loader: The loader.
        name: Its argument.
    """
    kind = type(loader).__name__
    if hasattr(loader, "__next__"):
        return [f"{name} must start again when it is iterated again, got {kind}; give the loader itself"]
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        return [f"{name} must be an iterable of batches, got {kind}; give a DataLoader"]
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        return [f"{name} must give batches, got the data set {kind}, which gives samples; give DataLoader({name}, ...)"]
    if num_batches(loader) == 0:
        return [f"{name} must give batches, got {kind} of length 0; check its dataset, batch size and drop_last"]
    if isinstance(loader, DataLoader):
        try:
            twin(loader)
        except Exception as error:  # noqa: BLE001 - a user's sampler may raise anything
            return [
                f"{name} must have samplers that can be copied, got {type(error).__name__}: {error}; "
                "give range_test a loader of its own"
            ]
    return []


def twin(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same dataset whose samplers, generators, counters and collator are copies.

    A collator that cannot be copied is shared. A loader of Accelerate's gets a ``GradientState`` of its own, so that
    reading the twin does not enter the list of loaders that Accelerate is in the middle of.

    Raises:
        Exception: A sampler cannot be copied.
    """
    copied: DataLoader[Any] = _shallow_copy(loader)
    holders = [copied]
    if "base_dataloader" in vars(copied):  # Accelerate's loaders wrap torch's
        vars(copied)["base_dataloader"] = base = _shallow_copy(vars(copied)["base_dataloader"])
        holders.append(base)
    if "gradient_state" in vars(copied):
        vars(copied)["gradient_state"] = _unshared(vars(copied)["gradient_state"])
    mutable = [{name: vars(holder)[name] for name in MUTABLE_ATTRIBUTES if name in vars(holder)} for holder in holders]
    shared = {id(dataset): dataset for dataset in _datasets(loader.dataset)}
    for holder, copies in zip(holders, copy.deepcopy(mutable, shared.copy()), strict=True):
        vars(holder).update(copies)
        if "collate_fn" in vars(holder):
            with suppress(Exception):  # a collator that holds an open file cannot be copied
                vars(holder)["collate_fn"] = copy.deepcopy(vars(holder)["collate_fn"], shared.copy())
        if "_iterator" in vars(holder):
            vars(holder)["_iterator"] = None  # persistent workers belong to the original
    return copied


def _shallow_copy(loader: Any) -> Any:
    """A new object with the same attributes; torch's loaders refuse assignments, Accelerate's break copy.copy."""
    copied = object.__new__(type(loader))
    vars(copied).update(vars(loader))
    return copied


def _unshared(state: Any) -> Any:
    """A copy of Accelerate's GradientState, all instances of which share one dictionary."""
    copied = object.__new__(type(state))
    vars(copied).update({name: copy.copy(value) for name, value in vars(state).items()})
    return copied


def _datasets(dataset: Any) -> Iterator[Any]:
    """A dataset and those it is a view of; their data must not be copied."""
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def num_batches(loader: Any) -> int | None:
    """Batches until the end; None where the loader does not know, or its iterable dataset only estimates it."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except Exception:  # noqa: BLE001 - a user's dataset may raise anything
        return None


def loaders_and_samplers(loader: Any) -> Iterator[Any]:
    """A loader, the loader inside of it, and their samplers, outermost first."""
    queue, seen = [loader], set()
    while queue:
        part = queue.pop(0)
        if id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        yield part
        queue += [vars(part)[name] for name in ("base_dataloader", "sampler", "batch_sampler") if name in vars(part)]


def seed_generators(loader: Any, *entropy: int) -> None:
    """Seed every generator of a loader, or a sampler, and its samplers from a tuple of non-negative integers."""
    attributes = itertools.chain.from_iterable(vars(part).values() for part in loaders_and_samplers(loader))
    generators = {id(value): value for value in attributes if isinstance(value, GENERATORS)}
    for number, generator in enumerate(generators.values()):
        seed = int(np.random.SeedSequence((*entropy, number)).generate_state(1)[0])
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed)


def _epoch_setter(loader: Any) -> Callable[[int], None]:
    """A function that moves a twin to the n-th epoch after its current one."""
    if "iteration" in getattr(loader, "__dict__", ()):  # Accelerate passes it on to samplers and dataset
        first = loader.iteration

        def set_iteration(number: int) -> None:
            loader.iteration = first + number

        return set_iteration
    samplers = [
        (part, part.epoch)
        for part in loaders_and_samplers(loader)
        if hasattr(part, "set_epoch") and hasattr(part, "epoch")
    ]

    def set_epochs(number: int) -> None:
        for part, first in samplers:
            part.set_epoch(first + number)

    return set_epochs
