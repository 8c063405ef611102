"""The loaders of a script as what a job reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lrrunner.config.schema import Config
from lrrunner.library.loaders.evaluation_loader import EvaluationLoader
from lrrunner.library.loaders.restarted_loader import RestartedLoader
from lrrunner.records import Step, Stop
from lrrunner.sweep.evaluators import WeightedBatches
from lrrunner.training.collectives import Collective


class ScriptBatches:
    """Training batches of a script, and the first ones of its validation loader. Every rank must construct one.

    Args:
        train_loader: Batches as in training.
        val_loader: Batches of evaluations; None evaluates those of ``train_loader``.
        job: Seed, and how many batches are monitored.
        collective: The world this rank belongs to.
    """

    def __init__(self, train_loader: Any, val_loader: Any, job: Config, *, collective: Collective) -> None:
        self._train = RestartedLoader(train_loader, collective=collective, seed=job.sweep.seed)
        self._evaluated = train_loader if val_loader is None else val_loader
        self._sweep, self._collective = job.sweep, collective
        self._loader, self._accumulation_steps = train_loader, job.train.accumulation_steps

    @property
    def epoch_steps(self) -> int | None:
        """Optimizer steps of one pass over the loader; None where it does not know its length."""
        try:
            return len(self._loader) // self._accumulation_steps
        except TypeError:  # of a stream
            return None

    def __call__(self, repeat: int, first_step: int = 0) -> Iterator[Any]:
        """Endless micro-batches of one repeat."""
        return self._train(repeat, first_step)

    def monitored(self) -> WeightedBatches:
        """The first ``val_batches`` batches of each rank."""
        return self._evaluation(most=self._sweep.val_batches)

    def compared(self) -> WeightedBatches:
        """As many batches as trials are compared on."""
        return self._evaluation(most=None)

    def locate(self, stop: Stop, steps: Sequence[Step]) -> str:
        """Nothing: a loader does not show the indices of its samples."""
        return ""

    def _evaluation(self, *, most: int | None) -> WeightedBatches:
        return EvaluationLoader(self._evaluated, collective=self._collective, seed=self._sweep.seed, most=most)
