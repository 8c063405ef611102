"""Batches of a script's loader for evaluations: always the same, and as many on every rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lrrunner.core.batch_plan import EVALUATION_DATA_ORDER
from lrrunner.library.loaders.restarted_loader import num_batches, seed_generators, twin
from lrrunner.sweep.evaluators import EVALUATED_BATCHES, MAX_EVALUATION_PASSES, MIN_EVALUATED
from lrrunner.training.collectives import Collective
from lrrunner.training.evaluation import EvaluationError
from lrrunner.training.state.snapshot import seed_rngs
from lrrunner.training.step.item_counts import num_samples


class EvaluationLoader:
    """The first batches of a loader, read from a twin of it, so that the loader itself does not change.

    Every rank must construct one, and call it at the same time. Where a loader does not know its length, its batches
    are counted once. A rank that reads fewer later repeats its last one without counting it, since every batch of an
    evaluation is reduced over all ranks.

    Args:
        loader: An iterable of batches that can be iterated again, prepared by Accelerate or not.
        collective: The world this rank belongs to.
        seed: Fixes the order of generators.
        most: Batches to read at most; None reads enough to compare trials on.

    Raises:
        EvaluationError: The loader gives no batch on some rank; raised on all of them.
    """

    def __init__(self, loader: Any, *, collective: Collective, seed: int, most: int | None = None) -> None:
        self._loader, self._seed, self._rank = loader, seed, collective.rank
        self._knows_length = None not in collective.gather(num_batches(loader))
        wanted = self._num_compared(collective) if most is None else most
        available: list[int] = collective.gather(self._num_available(wanted))
        if not all(available):
            empty = ", ".join(str(rank) for rank, number in enumerate(available) if not number)
            raise EvaluationError(f"val_loader gave no batch on rank {empty}; check its dataset")
        self._num_batches = min(available)

    def __call__(self) -> Iterator[tuple[Any, int]]:
        """This rank's batches, and 1, or 0 for one that does not count."""
        last: Any = None
        num_read = 0
        for last in itertools.islice(self._batches(), self._num_batches):
            num_read += 1
            yield last, 1
        for _ in range(self._num_batches - num_read):
            yield last, 0

    def _batches(self) -> Iterator[Any]:
        loader = self._loader
        if isinstance(loader, DataLoader):
            loader = twin(loader)
            seed_generators(loader, self._seed, EVALUATION_DATA_ORDER)
            if not self._knows_length:
                vars(loader)["rng_types"] = None  # else Accelerate would communicate
        return iter(loader)

    def _num_compared(self, collective: Collective) -> int:
        """Batches that hold enough samples, if all are of the size of the first one."""
        _, size = self._survey(1)
        num = sum(collective.gather(size))
        enough = -(-MIN_EVALUATED // num) if num else 0
        return min(MAX_EVALUATION_PASSES, max(EVALUATED_BATCHES, enough))

    def _num_available(self, wanted: int) -> int:
        length = num_batches(self._loader)
        return min(wanted, self._survey(wanted)[0] if length is None else length)

    def _survey(self, most: int) -> tuple[int, int]:
        """How many batches there are, and the samples of the first one, 0 if they cannot be counted.

        One that cannot be read counts: its error comes again when it is evaluated, on all ranks.
        """
        seed_rngs(self._seed, EVALUATION_DATA_ORDER, self._rank)
        number = size = 0
        try:
            for batch in itertools.islice(self._batches(), most):
                size = size if number else num_samples(batch) or 0
                number += 1
        except Exception:  # noqa: BLE001 - whatever a user's data set raises
            number += 1
        return number, size
