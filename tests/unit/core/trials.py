"""Trials of tests, and losses whose lowest point is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from lrrunner.core.trial_planning import STEPS_PER_DECADE, next_trial
from lrrunner.records import Suggestion, Trial, TrialOutcome, Verdict

Loss = Callable[[float, int], float]
"""(LR, steps of the complete schedule) -> the loss at the end; infinite where the training diverges."""

START = 1e-3

any_loss = st.integers(-500, 500).map(lambda hundredths: hundredths / 100)
any_loss_or_divergence = any_loss | st.just(math.inf)
six_losses = st.lists(any_loss_or_divergence, min_size=6, max_size=6)


def sweep_at(lr: float | None = START) -> Suggestion:
    """A suggestion of a sweep, with a standard error of 0.366 decades."""
    return Suggestion(
        lr=lr,
        method="auto",
        verdict=Verdict.OK,
        reason="a good curve",
        interval=None if lr is None else (lr / 4, lr * 4),
        expected_regret=None if lr is None else 0.08,
        candidates={"auto": lr},
    )


def trial_at(
    lr: float, loss: float, *, num_steps: int = 100, number: int = 0, batch_losses: tuple[float, ...] = ()
) -> Trial:
    """A trial as it is recorded."""
    diverged = not math.isfinite(loss)
    return Trial(
        trial=number,
        lr=lr,
        num_steps=num_steps,
        num_steps_run=1 if diverged else num_steps,
        loss=loss,
        outcome=TrialOutcome.DIVERGED if diverged else TrialOutcome.FINISHED,
        batch_losses=batch_losses,
    )


def trials_at(losses: dict[int, float], *, num_steps: int = 100, start: float = START) -> list[Trial]:
    """Trials of one length at these quarters of a decade from the start."""
    return [
        trial_at(start * 10 ** (place / STEPS_PER_DECADE), loss, num_steps=num_steps, number=number)
        for number, (place, loss) in enumerate(losses.items())
    ]


def valley(
    lowest_at: float, *, diverges_above: float = math.inf, lowered: float = 0.0, diverges_lowered: float = 0.0
) -> Loss:
    """A parabola against log LR and a cliff; both may move down with the logarithm of the length."""

    def loss(lr: float, num_steps: int) -> float:
        length, at = math.log10(num_steps), math.log10(lr)
        if at > diverges_above - diverges_lowered * length:
            return math.inf
        return 1.0 + (at - lowest_at + lowered * length) ** 2

    return loss


def run_plan(
    loss: Loss,
    *,
    start: float = START,
    budget: int = 600,
    training_steps: int | None = None,
    initial_loss: float = math.nan,
    noise: float = 0.0,
) -> list[Trial]:
    """Every trial that is planned, with the loss it would end at."""
    trials = list[Trial]()
    while planned := next_trial(
        sweep_at(start),
        trials,
        budget_steps=budget,
        training_steps=training_steps,
        initial_loss=initial_loss,
        noise=noise,
    ):
        trials.append(trial_at(planned.lr, loss(*planned), num_steps=planned.num_steps, number=len(trials)))
        assert len(trials) <= 6
    return trials


def places(trials: Sequence[Trial], start: float = START) -> list[int]:
    """Quarters of a decade from the start."""
    return [round(STEPS_PER_DECADE * math.log10(trial.lr / start)) for trial in trials]
