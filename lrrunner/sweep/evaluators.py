"""The two evaluations of a job: the validation loss that a sweep monitors, and the loss that trials are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lrrunner.config.schema import Config
from lrrunner.core.batch_plan import EVALUATION_DATA_ORDER
from lrrunner.records import Step, Stop
from lrrunner.training.collectives import Collective
from lrrunner.training.engine import RankContext
from lrrunner.training.evaluation import Evaluation, evaluate, undisturbed
from lrrunner.training.state.snapshot import seed_rngs
from lrrunner.training.trainable import Batches, Trainable

WeightedBatches = Callable[[], Iterator[tuple[Any, int]]]
"""Reads this rank's batches of an evaluation, always the same, with the number of samples that each counts for. All
ranks have the same number of batches."""

FIRST_EVALUATION_TIMEOUT_S = 3600.0
"""Limit on collectives in the first evaluation of trials, which may compile the model and read files the first time."""

MIN_EVALUATED, EVALUATED_BATCHES = 2048, 20
"""Trials are evaluated on the larger of so many samples and so many global batches, or on all samples there are. The
standard error of the mean is then a fiftieth of the standard deviation of a sample, or less."""

MAX_EVALUATION_PASSES = 100
"""Most forward passes of a rank in an evaluation. With small batches, evaluating would otherwise cost more than
training."""


class JobBatches(Batches, Protocol):
    """Everything that a job reads: endless training batches, and those of its two evaluations."""

    @property
    def epoch_steps(self) -> int | None:
        """Optimizer steps of one epoch; None if it is not known."""
        ...

    def monitored(self) -> WeightedBatches:
        """The few batches whose loss a sweep monitors instead of the training loss. Every rank must call this."""
        ...

    def compared(self) -> WeightedBatches:
        """The batches that trials are compared on. Every rank must call this."""
        ...

    def locate(self, stop: Stop, steps: Sequence[Step]) -> str:
        """Which samples the ranks of a stop were at, as text; empty where that is not known."""
        ...


def num_evaluated(global_batch_size: int, *, accumulation_steps: int) -> int:
    """How many samples an evaluation of trials takes at most; independent of the number of ranks.

    >>> num_evaluated(64, accumulation_steps=1), num_evaluated(512, accumulation_steps=2)
    (2048, 10240)
    >>> num_evaluated(4, accumulation_steps=1)
    400
    """
    wanted = max(MIN_EVALUATED, EVALUATED_BATCHES * global_batch_size)
    return min(wanted, MAX_EVALUATION_PASSES * global_batch_size // accumulation_steps)


def validation_monitor(
    job: Config, trainable: Trainable, batches: JobBatches, *, collective: Collective
) -> Callable[[], Evaluation]:
    """Make the evaluation that ``sweep.monitor=val`` runs between training steps, and leave training undisturbed.

    It always evaluates the same few whole batches, which are read here, once. A stop request waits for its end, so that
    the records of a resumed sweep are those of an uninterrupted one.

    Returns:
        Function that evaluates. Every rank must call it.
    """
    seed, read = job.sweep.seed, batches.monitored()
    with undisturbed(trainable):
        seed_rngs(seed, EVALUATION_DATA_ORDER, collective.rank)
        held = list(read())

    def evaluate_now() -> Evaluation:
        with undisturbed(trainable):
            seed_rngs(seed, EVALUATION_DATA_ORDER, collective.rank)
            return evaluate(trainable, held, collective=collective, batch_statistics=True)

    return evaluate_now


def trial_evaluator(
    job: Config, trainable: Trainable, batches: JobBatches, *, context: RankContext
) -> Callable[[], Evaluation]:
    """Make the evaluation that trials are compared on: always the same samples, with the same random numbers.

    Returns:
        Function that evaluates. Every rank must call it.
    """
    read = batches.compared()
    timeout_s = max(FIRST_EVALUATION_TIMEOUT_S, job.run.timeout_s)

    def evaluate_now() -> Evaluation:
        nonlocal timeout_s
        context.set_timeout(timeout_s)
        timeout_s = job.run.timeout_s
        seed_rngs(job.sweep.seed, EVALUATION_DATA_ORDER, context.collective.rank)
        evaluation = evaluate(trainable, read(), collective=context.collective, stop_requested=context.stop_requested)
        context.set_timeout(timeout_s)
        return evaluation

    return evaluate_now
