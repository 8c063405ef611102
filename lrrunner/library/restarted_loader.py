"""A user's own data loader, read from its start as often as a sweep needs, and left as if nobody had read it."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset

from lrrunner.training.collectives import Collective

OWN_PARTS = ("sampler", "batch_sampler", "generator", "synchronized_generator")
"""What a loader changes while it is read."""


class RestartedLoader:
    """Endless micro-batches from a loader that is restarted whenever it ends, on all ranks at the same step.

    Of torch's loaders and Accelerate's, what is read is a twin with samplers, generators and counters of its own. Its
    generators are seeded by (seed, repeat), the same on every rank; samplers that follow an epoch begin with the
    loader's current one. Every repeat therefore has another data order, and the same repeat of a later call has the
    same one again. What an iterable dataset keeps of its position is its own.

    Every rank must make one: they agree on the number of batches after which all begin anew. Where a rank does not know
    its number (iterable datasets), it begins anew alone, which is why nothing communicates then.

    Args:
        loader: Any iterable of batches that can be iterated again, prepared by Accelerate or not.
        collective: The world this rank belongs to.
        seed: Fixes the order of generators.
    """

    def __init__(self, loader: Any, *, collective: Collective, seed: int) -> None:
        self._loader, self._seed = loader, seed
        lengths = collective.gather(_length(loader))
        self._num_batches: int | None = None if None in lengths else min(lengths)

    def __call__(self, repeat: int, first_step: int = 0) -> Iterator[Any]:
        """Those of one repeat, from its first optimizer step on."""
        assert first_step == 0, "a user's loader cannot be entered in the middle"
        loader = self._loader
        if isinstance(loader, DataLoader):
            loader = twin(loader)
            _seed_generators(loader, self._seed, repeat)
            if self._num_batches is None:
                vars(loader)["rng_types"] = None  # else Accelerate would communicate where one begins anew alone
        set_epoch = _epochs(loader)
        for epoch in itertools.count(repeat):
            set_epoch(epoch)
            is_empty = True
            for batch in itertools.islice(iter(loader), self._num_batches):
                is_empty = False
                yield batch
            if is_empty:
                raise ValueError("train_loader must give batches each time it is iterated, got none; check its dataset")


def loader_errors(loader: Any) -> list[str]:
    """Why a loader cannot be restarted, or not be left as it was; empty where it can."""
    name = type(loader).__name__
    if hasattr(loader, "__next__"):
        return [f"train_loader must begin anew when it is iterated again, got {name}; give the loader itself"]
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        return [f"train_loader must be an iterable of batches, got {name}; give a DataLoader"]
    if _length(loader) == 0:
        return [f"train_loader must give batches, got {name} of length 0; check its dataset, batch size and drop_last"]
    if isinstance(loader, DataLoader):
        try:
            twin(loader)
        except Exception as error:  # noqa: BLE001 - a user's sampler raises what it likes
            return [
                f"train_loader must have samplers that can be copied, got {type(error).__name__}: {error}; "
                "give range_test a loader of its own"
            ]
    return []


@contextmanager
def untouched(loader: Any) -> Iterator[None]:
    """What a twin shares with its loader is afterwards as before: Accelerate's list of loaders, its dataset's epoch."""
    state = getattr(loader, "gradient_state", None)
    kept = {} if state is None else {name: copy.copy(value) for name, value in vars(state).items()}
    try:
        yield
    finally:
        if state is not None:
            vars(state).update(kept)
        set_epoch = getattr(getattr(loader, "dataset", None), "set_epoch", None)
        if hasattr(loader, "iteration") and set_epoch is not None:
            set_epoch(loader.iteration)


def twin(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same dataset whose samplers, generators, counters and collator are copies.

    A collator that cannot be copied is the same one.

    Raises:
        Exception: whatever a sampler raises that cannot be copied.
    """
    copied: DataLoader[Any] = _bare_copy(loader)
    holders = [copied]
    if "base_dataloader" in vars(copied):  # Accelerate's loaders wrap torch's
        vars(copied)["base_dataloader"] = base = _bare_copy(vars(copied)["base_dataloader"])
        holders.append(base)
    own = [{name: vars(holder)[name] for name in OWN_PARTS if name in vars(holder)} for holder in holders]
    shared = {id(dataset): dataset for dataset in _datasets(loader.dataset)}
    for holder, parts in zip(holders, copy.deepcopy(own, shared.copy()), strict=True):
        vars(holder).update(parts)
        if "collate_fn" in vars(holder):
            with suppress(Exception):  # one that holds an open file, say
                vars(holder)["collate_fn"] = copy.deepcopy(vars(holder)["collate_fn"], shared.copy())
        if "_iterator" in vars(holder):
            vars(holder)["_iterator"] = None  # persistent workers belong to the original
    return copied


def num_samples(batch: Any) -> int | None:
    """Size of the first dimension of the first tensor in a batch; None without one.

    A batch is a tensor, or a sequence or mapping of fields: (inputs, targets), say. Lists inside of it are not looked
    into, since they may hold one sample an entry, nor is a list of mappings that have the same keys.

    >>> num_samples({"ids": torch.zeros(3, 7), "mask": torch.zeros(3)})
    3
    >>> num_samples(([torch.zeros(2, 5)] * 8, [torch.zeros(1)] * 8))
    """
    if isinstance(batch, list | tuple):
        return None if _are_samples(batch) else _first(map(_num_rows, batch))
    return _num_rows(batch)


def _num_rows(field: Any) -> int | None:
    """Size of the first dimension of the first tensor in a field of a batch, which may be a mapping of fields."""
    if isinstance(field, torch.Tensor):
        return len(field) if field.ndim else None
    return _first(map(_num_rows, field.values())) if isinstance(field, Mapping) else None


def _are_samples(batch: Sequence[Any]) -> bool:
    """Whether a sequence is one of samples, not of fields."""
    return len(batch) > 1 and all(isinstance(part, Mapping) and part.keys() == batch[0].keys() for part in batch)


def _first(counts: Iterable[int | None]) -> int | None:
    return next((count for count in counts if count is not None), None)


def to_device(device: torch.device) -> Callable[[Any], Any]:
    """What moves a batch to a device; nothing to do on a CPU."""
    if device.type == "cpu":
        return lambda batch: batch
    return functools.partial(send_to_device, device=device, non_blocking=True)


def _bare_copy(loader: Any) -> Any:
    """The same attributes in a new object; torch's loaders refuse assignments, Accelerate's break copy.copy."""
    copied = object.__new__(type(loader))
    vars(copied).update(vars(loader))
    return copied


def _datasets(dataset: Any) -> Iterator[Any]:
    """A dataset and, where it is a view of another, that one, too: data are not copied."""
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _length(loader: Any) -> int | None:
    """Batches until the end; None where nobody knows, or an iterable dataset only estimates it."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except Exception:  # noqa: BLE001 - a user's data set raises what it likes
        return None


def _parts(loader: Any) -> Iterator[Any]:
    """A loader, what it wraps, and their samplers, outermost first."""
    queue, seen = [loader], set()
    while queue:
        part = queue.pop(0)
        if id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        yield part
        queue += [vars(part)[name] for name in ("base_dataloader", "sampler", "batch_sampler") if name in vars(part)]


def _seed_generators(loader: Any, *entropy: int) -> None:
    generators = [
        value for part in _parts(loader) for value in vars(part).values() if isinstance(value, torch.Generator)
    ]
    for number, generator in enumerate(dict.fromkeys(generators)):
        generator.manual_seed(int(np.random.SeedSequence((*entropy, number)).generate_state(1)[0]))


def _epochs(loader: Any) -> Callable[[int], None]:
    """What brings a twin to the n-th epoch from its current one."""
    if "iteration" in getattr(loader, "__dict__", ()):  # Accelerate tells samplers and dataset
        first = loader.iteration

        def set_iteration(number: int) -> None:
            loader.iteration = first + number

        return set_iteration
    followers = [(part, part.epoch) for part in _parts(loader) if hasattr(part, "set_epoch") and hasattr(part, "epoch")]

    def set_epochs(number: int) -> None:
        for part, first in followers:
            part.set_epoch(first + number)

    return set_epochs
