"""Confirmation runs after a sweep, replayed on measured short trainings."""

from __future__ import annotations

from lrrunner.core.confirmation import confirmed
from lrrunner.core.curve import curve_from_steps
from lrrunner.core.lr_estimate import OptimizerClass
from lrrunner.core.trial_planning import next_trial, trial_start
from lrrunner.records import Suggestion, Training, Trial
from oracle.bowls import TrialTable
from oracle.replay import BETA, RangeTest


def confirmed_suggestion(
    table: TrialTable,
    test: RangeTest,
    *,
    optimizer: OptimizerClass,
    budget_steps: int,
    training: Training,
    initial_loss: float,
) -> Suggestion:
    """What lrrunner would suggest after confirmation runs whose losses are read off a table.

    Args:
        table: Losses of short trainings under the schedule of the training.
        test: The sweep before.
        optimizer: Class of the optimizer.
        budget_steps: Steps of all trials together.
        training: The training.
        initial_loss: Loss before any training.
    """
    start = trial_start(test.suggestion, optimizer=optimizer, training=training)
    curve = curve_from_steps(test.steps, beta=BETA)
    if start is None or curve is None:
        return test.suggestion
    trials: list[Trial] = []
    while planned := next_trial(
        start,
        trials,
        budget_steps=budget_steps,
        training_steps=training.num_steps,
        initial_loss=initial_loss,
        noise=curve.noise,
    ):
        loss = table.loss(planned.lr, planned.num_steps)
        trials.append(
            Trial(
                trial=len(trials),
                lr=planned.lr,
                num_steps=planned.num_steps,
                num_steps_run=planned.num_steps,
                loss=loss,
            )
        )
    result = confirmed(start, trials, training=training, monitored="loss", initial_loss=initial_loss)
    return test.suggestion if result.failure_reason else result.suggestion
