"""The plan of confirmation runs: its budget, its lengths, where it goes and when it ends."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.core.lr_estimate import PRIOR_LOG_LRS, SCHEDULE_DECADES, OptimizerClass
from lrrunner.core.trial_planning import MAX_TRIALS, PlannedTrial, next_trial, trial_start
from lrrunner.records import Training, Verdict
from tests.unit.core.curves import PROPERTY
from tests.unit.core.trials import (
    START,
    any_loss,
    places,
    run_plan,
    six_losses,
    sweep_at,
    trial_at,
    trials_at,
    valley,
)

any_budget = st.integers(1, 5000)
any_length = st.none() | st.integers(1, 10_000)


@PROPERTY
@given(budget=any_budget, training_steps=any_length, losses=six_losses, initial_loss=any_loss | st.just(math.nan))
def test_plan_keeps_to_the_budget_and_the_training_and_ends(
    budget: int, training_steps: int | None, losses: list[float], initial_loss: float
) -> None:
    """Whatever is measured: a user pays what was asked for, and nothing longer than the real training is run."""
    remaining = iter(losses)
    trials = run_plan(
        lambda lr, num_steps: next(remaining),
        budget=budget,
        training_steps=training_steps,
        initial_loss=initial_loss,
    )
    assert trials
    assert sum(trial.num_steps for trial in trials) <= budget
    assert all(1 <= trial.num_steps <= (training_steps or budget) for trial in trials)
    assert len(set(places(trials))) == len(trials), "no training is run twice"


@pytest.mark.parametrize(
    ("budget", "training_steps", "lengths"),
    [
        (1, None, [1]),
        (2, None, [1, 1]),
        (5, None, [1, 1, 1]),
        (500, None, [166, 166, 166]),
        (500, 10_000, [166, 166, 166]),
        (500, 167, [166, 166, 166]),
        (500, 166, [166, 166, 166]),
        (500, 125, [125, 125, 125, 125]),
        (500, 20, [20, 20, 20, 20, 20]),
        (500, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_lengths_of_the_trials(budget: int, training_steps: int | None, lengths: list[int]) -> None:
    """A third of the budget each; whole trainings where these are shorter, as many as there is something to learn."""
    trials = run_plan(valley(-3.1), budget=budget, training_steps=training_steps)
    assert [trial.num_steps for trial in trials] == lengths


def test_first_trial_is_the_suggestion_itself() -> None:
    """What the user would have trained with is always among what is compared."""
    planned = next_trial(sweep_at(0.0123), [], budget_steps=1400, training_steps=None)
    assert planned == PlannedTrial(0.0123, 466)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (valley(-3.0), [0, 2, -2]),
        (valley(-2.0), [0, 2, 4]),
        (valley(-4.0), [0, 2, -2]),
        (valley(-3.0, diverges_above=-2.9), [0, 2, -2]),
        (valley(-4.0, diverges_above=-3.1), [0, -4, -2]),
        (valley(-9.0, diverges_above=-4.1), [0, -4, -8]),
    ],
    ids=["inside", "above", "below", "cliff above", "cliff below", "cliff far below"],
)
def test_the_lowest_loss_gets_neighbours(loss: object, expected: list[int]) -> None:
    """Half a decade to each side; a decade down from what diverged, and back up half of it where that survived."""
    assert places(run_plan(loss)) == expected  # type: ignore[arg-type]


def test_where_the_whole_training_is_cheap_the_gaps_are_halved() -> None:
    """Six complete trainings: three around the lowest loss, then between them."""
    assert places(run_plan(valley(-2.8), training_steps=50)) == [0, 2, -2, 1]
    assert places(run_plan(valley(-1.0), training_steps=50)) == [0, 2, 4, 6, 8, 10]


def test_plan_ends_where_everything_diverges() -> None:
    """A decade down each time, and no more than the plan has."""
    assert places(run_plan(lambda lr, num_steps: math.inf)) == [0, -4, -8]
    assert len(run_plan(lambda lr, num_steps: math.inf, training_steps=10)) == MAX_TRIALS


@pytest.mark.parametrize(("loss", "second"), [(1.97, 2), (1.997, 4), (2.003, 4), (2.03, -4)])
def test_first_trial_is_compared_with_the_initial_loss(loss: float, second: int) -> None:
    """2.0 before training, a noise of 0.02 a batch: learnt, nothing either way, and too high a learning rate."""
    trials = run_plan(lambda lr, num_steps: loss, initial_loss=2.0, noise=0.02)
    assert places(trials)[1] == second


def test_losses_that_noise_explains_are_equal() -> None:
    """Of these the sweep's LR is taken, so the third trial goes below it instead of further up."""
    trials = trials_at({0: 1.0, 2: 0.97})
    planned = next_trial(sweep_at(), trials, budget_steps=300, training_steps=None, initial_loss=2.0, noise=0.2)
    assert planned is not None
    assert planned.lr == pytest.approx(START / 10**0.5)
    planned = next_trial(sweep_at(), trials, budget_steps=300, training_steps=None, initial_loss=2.0, noise=0.1)
    assert planned is not None
    assert planned.lr == pytest.approx(START * 10)


def test_plan_does_not_start_without_a_suggestion() -> None:
    """There is nothing to begin at: the caller has to look at the sweep first."""
    with pytest.raises(ValueError, match="must have suggested an LR"):
        next_trial(sweep_at(None), [], budget_steps=1400, training_steps=None)


@PROPERTY
@given(
    start=st.floats(-8.0, 1.0).map(lambda exponent: 10**exponent),
    offset=st.floats(-2.0, 2.0),
    cliff=st.floats(-2.0, 3.0),
    budget=st.integers(14, 5000),
)
def test_positions_survive_floating_point(start: float, offset: float, cliff: float, budget: int) -> None:
    """Trials read back from text, to 17 digits or to 6, are the same places: else one would be run again."""
    loss = valley(math.log10(start) + offset, diverges_above=math.log10(start) + offset + cliff)
    trials = run_plan(loss, start=start, budget=budget)
    for written in (repr, "{:.6g}".format):
        read = [trial_at(float(written(trial.lr)), trial.loss, num_steps=trial.num_steps) for trial in trials]
        for done in range(len(trials) + 1):
            expected = next_trial(sweep_at(start), trials[:done], budget_steps=budget, training_steps=None)
            assert next_trial(sweep_at(start), read[:done], budget_steps=budget, training_steps=None) == expected


# Invariance: the unit and the zero of a loss and the unit of an LR are conventions.


@PROPERTY
@given(losses=six_losses, log_factor=st.floats(-6.0, 6.0))
def test_unit_of_the_loss_does_not_matter(losses: list[float], log_factor: float) -> None:
    """The plan compares losses with each other and with the initial one."""
    plain, factor = iter(losses), 10**log_factor
    scaled = iter([loss * factor for loss in losses])
    expected = places(run_plan(lambda lr, n: next(plain), initial_loss=2.305, training_steps=10))
    found = run_plan(lambda lr, n: next(scaled), initial_loss=2.305 * factor, training_steps=10)
    assert places(found) == expected


@pytest.mark.parametrize("shift", [-2000.0, -2.5, -2.0, 100.0])
@pytest.mark.parametrize("initial_loss", [math.nan, 2.5])
def test_zero_of_the_loss_does_not_matter(initial_loss: float, shift: float) -> None:
    """An ELBO of -2000 falls by 1.5 as well as a cross-entropy of 2.5: the same trials have to follow."""
    loss = valley(-2.5)
    shifted = run_plan(lambda lr, n: loss(lr, n) + shift, initial_loss=initial_loss + shift)
    assert places(shifted) == places(run_plan(loss, initial_loss=initial_loss))


@PROPERTY
@given(losses=six_losses, log_factor=st.floats(-4.0, 4.0))
def test_unit_of_the_lr_scales_the_plan(losses: list[float], log_factor: float) -> None:
    """An optimizer that counts in other units is tried at the same places."""
    factor = 10**log_factor
    one, other = iter(losses), iter(losses)
    plain = run_plan(lambda lr, n: next(one), training_steps=10)
    moved = run_plan(lambda lr, n: next(other), start=START * factor, training_steps=10)
    assert [trial.lr for trial in moved] == pytest.approx([trial.lr * factor for trial in plain], rel=1e-12)
    assert [trial.num_steps for trial in moved] == [trial.num_steps for trial in plain]


# Where trials begin.


def test_trials_begin_at_the_sweeps_lr() -> None:
    """Whatever its verdict is."""
    sweep = dataclasses.replace(sweep_at(), verdict=Verdict.NO_DESCENT)
    assert trial_start(sweep, optimizer=OptimizerClass.ADAPTIVE, training=Training()) is sweep


@pytest.mark.parametrize("verdict", [Verdict.TOO_NOISY, Verdict.NO_DESCENT])
def test_where_noise_hides_the_sweep_trials_begin_at_what_is_usual(verdict: Verdict) -> None:
    """For this kind of optimizer and this training; with an interval that says how little that is."""
    sweep = dataclasses.replace(sweep_at(None), verdict=verdict)
    found = trial_start(sweep, optimizer=OptimizerClass.SGD, training=Training(schedule="cosine"))
    assert found is not None
    assert found.lr is not None
    assert found.interval is not None
    assert found.lr == pytest.approx(10 ** (PRIOR_LOG_LRS[OptimizerClass.SGD] + SCHEDULE_DECADES["cosine"]))
    assert found.interval[1] / found.interval[0] > 10
    assert found.reason.startswith("a good curve; confirmation began at an LR that is usual")
    assert next_trial(found, [], budget_steps=300, training_steps=None) == PlannedTrial(found.lr, 100)


@pytest.mark.parametrize(
    ("verdict", "optimizer"),
    [(Verdict.FLAT, OptimizerClass.SGD), (Verdict.NON_FINITE_AT_START, OptimizerClass.SGD), (Verdict.TOO_NOISY, None)],
)
def test_what_trials_cannot_mend_begins_none(verdict: Verdict, optimizer: OptimizerClass | None) -> None:
    """A loss that no LR moves, or that is not finite; an optimizer whose LRs nobody knows."""
    sweep = dataclasses.replace(sweep_at(None), verdict=verdict)
    assert trial_start(sweep, optimizer=optimizer, training=Training()) is None
