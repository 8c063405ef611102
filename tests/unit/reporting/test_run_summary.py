"""The text about a run answers first, and covers every way in which a run can end."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lrrunner.config.schema import Config, DataConfig, Monitor, SweepConfig
from lrrunner.core.lr_estimate import NAMES
from lrrunner.records import (
    Confirmation,
    NoiseScale,
    RangeTestResult,
    Step,
    Stop,
    StopReason,
    Suggestion,
    SweepPass,
    Training,
    Trial,
    TrialOutcome,
    Verdict,
)
from lrrunner.reporting.run_summary import (
    EVIDENCE_TEXTS,
    closing_lines,
    describe_best_trial,
    describe_expected_regret,
    describe_monitor,
    describe_noise_scale,
    describe_passes,
    describe_stop,
    describe_training,
    describe_trials,
    interrupted_lines,
    link_figure,
    note,
    unfinished_note,
)
from lrrunner.results.run_state import RunState
from lrrunner.results.suggestion_file import range_test_from, suggestion_content

SUGGESTION = Suggestion(
    lr=1.2e-3,
    method="auto",
    verdict=Verdict.OK,
    reason="the loss falls",
    interval=(6e-4, 2.4e-3),
    candidates={"auto": 1.2e-3, "slide": None},
)
NO_SUGGESTION = Suggestion(lr=None, method="auto", verdict=Verdict.FLAT, reason="flat; raise sweep.end_lr")
JOB = Config(model={}, objective={}, optimizer={}, data=DataConfig(global_batch_size=64), sweep=SweepConfig())
BATCH = "2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step"


def result(suggestion: Suggestion = SUGGESTION) -> RangeTestResult:
    return RangeTestResult(
        steps=(Step(step=0, lr=1e-7, loss=2.0),),
        stops=(Stop(reason=StopReason.DIVERGED, step=50),),
        suggestion=suggestion,
        world_size=2,
        global_batch_size=64,
    )


def trial(number: int, *, num_steps: int = 100, outcome: TrialOutcome = TrialOutcome.FINISHED) -> Trial:
    return Trial(trial=number, lr=1e-3, num_steps=num_steps, num_steps_run=num_steps, loss=1.5, outcome=outcome)


def test_the_closing_lines_give_the_lr_its_interval_and_where_the_run_is() -> None:
    """They are what a terminal shows when the run is over."""
    assert closing_lines(result(), JOB, directory="runs/a", mlflow="http://host/x") == [
        "suggested lr: 1.2e-03   [6.0e-04, 2.4e-03]   verdict: ok",
        "train with:   optimizer.lr=0.0012",
        "picture:      runs/a/lr_sweep.png",
        "mlflow:       http://host/x",
        "training:     about 400 steps, constant; set train.num_steps for another length",
        f"batch:        {BATCH}",
    ]


def test_the_closing_lines_say_which_training_the_lr_is_for() -> None:
    """A longer one wants another LR; an assumption is said."""
    assert describe_training(Training(num_steps=5000, schedule="cosine")) == "5000 steps, cosine schedule"
    assumed = Training(num_steps=1950, is_assumed=True)
    assert describe_training(assumed) == "about 1950 steps, constant; set train.num_steps for another length"


def test_the_closing_lines_say_what_the_lr_may_lose_and_what_would_lower_it() -> None:
    """With its cost in steps; after confirmation runs, and where there is little to lose, the share alone."""
    assert describe_expected_regret(result(), JOB) == ""
    uncertain = result(dataclasses.replace(SUGGESTION, interval=(4e-4, 3.6e-3), expected_regret=0.053))
    text = "5% of the possible gain; 4% with confirm.enabled=true (500 steps)"
    assert describe_expected_regret(uncertain, JOB) == text
    assert "may lose:     5% of the possible gain; 4%" in "\n".join(
        closing_lines(uncertain, JOB, directory="a", mlflow=None)
    )
    sure = result(dataclasses.replace(SUGGESTION, expected_regret=0.02))
    assert describe_expected_regret(sure, JOB) == "2% of the possible gain"
    confirmation = Confirmation(
        schedule="cosine", monitored="validation loss", horizon=400, budget_steps=500, sweep=SUGGESTION
    )
    confirmed = dataclasses.replace(uncertain, confirmation=confirmation)
    text = "5% of the possible gain; less with a larger confirm.budget_steps"
    assert describe_expected_regret(confirmed, JOB) == text


def test_without_a_suggestion_the_closing_lines_say_what_to_change() -> None:
    """An LR to train with would be an invention."""
    assert closing_lines(result(NO_SUGGESTION), JOB, directory="runs/a", mlflow=None) == [
        "suggested lr: none   verdict: flat   (flat; raise sweep.end_lr)",
        "picture:      runs/a/lr_sweep.png",
        f"batch:        {BATCH}",
    ]


def test_a_verdict_that_is_not_ok_is_explained_within_80_columns() -> None:
    """The reason follows the LR; long sentences continue below themselves, commands and paths stay whole."""
    reason = "the curve never turned up, so the best LR may be higher; " * 3
    doubtful = dataclasses.replace(result().suggestion, verdict=Verdict.NO_DIVERGENCE, reason=reason)
    lines = closing_lines(result(doubtful), JOB, directory="runs/a", mlflow=None)
    assert lines[2].startswith("why:          the curve never turned up")
    assert lines[3].startswith(" " * 14 + "never turned up")
    assert max(map(len, lines)) <= 80
    unreadable = dataclasses.replace(NO_SUGGESTION, reason=reason)
    assert max(map(len, closing_lines(result(unreadable), JOB, directory="runs/a", mlflow=None))) <= 80


def test_the_note_holds_the_answer_its_reasons_and_the_command() -> None:
    """It is note.md, and the description of the MLflow run."""
    assert note(result(), JOB, command="lrrunner seed=1", directory="/runs/a") == (
        "**Suggested LR 1.20e-03**, interval [6.0e-04, 2.4e-03] (verdict: ok)\n"
        "\n"
        "The loss falls.\n"
        "\n"
        "![LR sweep](lr_sweep.png)\n"
        "\n"
        "The sweep ended at step 50 of 100: the smoothed loss diverged.\n"
        "\n"
        f"{BATCH}\n"
        "\n"
        "| rule | LR |\n"
        "|---|---|\n"
        "| auto | 1.20e-03 |\n"
        "| slide | none |\n"
        "\n"
        "Run directory: `/runs/a`. To repeat it:\n"
        "\n"
        "```\n"
        "lrrunner seed=1\n"
        "```\n"
    )


def test_the_note_lists_confirmation_runs() -> None:
    """A run that did not finish has no loss to compare."""
    confirmation = Confirmation(
        schedule="cosine", monitored="validation loss", horizon=None, budget_steps=500, sweep=SUGGESTION
    )
    trials = (trial(0), trial(1, outcome=TrialOutcome.DIVERGED))
    test = dataclasses.replace(result(), trials=trials, confirmation=confirmation)
    text = note(test, JOB, command="lrrunner", directory="/runs/a")
    assert "| 1.00e-03 | 100 of 100 | 1.5 | best |\n| 1.00e-03 | 100 of 100 | diverged |  |\n" in text


def test_mlflow_serves_the_figure_of_the_note() -> None:
    """The path in note.md means nothing on the run's page."""
    text = note(result(), JOB, command="lrrunner", directory="/runs/a")
    assert "![LR sweep](get-artifact?path=lr_sweep.png&run_uuid=a1)" in link_figure(text, run_id="a1")


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_stop_has_a_text(reason: StopReason) -> None:
    """A run that ended for a new reason would fail at its end otherwise."""
    assert describe_stop(Stop(reason=reason, step=3))


def test_a_non_finite_stop_names_its_ranks() -> None:
    """Their data is what to look at."""
    assert describe_stop(Stop(reason=StopReason.NON_FINITE, step=3, ranks=(1, 3))) == (
        "the loss was not finite on rank 1, 3"
    )


def test_a_sweep_on_the_validation_loss_says_so() -> None:
    """Its curve has fewer points than the sweep has steps."""
    assert describe_monitor(SweepConfig()) == ""
    assert describe_monitor(SweepConfig(monitor=Monitor.val)) == "judged by the validation loss after every step"
    third = SweepConfig(monitor=Monitor.val, val_every=3)
    assert describe_monitor(third) == "judged by the validation loss after every 3rd step"


def test_passes_are_listed_if_there_are_several() -> None:
    """The suggestion need not be from the last one."""
    passes = (
        SweepPass(start_lr=1e-7, end_lr=10, suggestion=SUGGESTION, extension="x"),
        SweepPass(start_lr=1e-6, end_lr=100, suggestion=SUGGESTION),
    )
    assert describe_passes(dataclasses.replace(result(), passes=passes[:1])) == ""
    assert describe_passes(dataclasses.replace(result(), passes=passes, curve_pass=0)) == (
        "2 passes: 1.0e-07 to 1.0e+01, 1.0e-06 to 1.0e+02; the suggestion is from pass 1"
    )


def test_passes_without_a_suggestion_give_the_verdict() -> None:
    """A NaN at the first step was reported with "the suggestion is from pass 2", where there was none."""
    passes = (
        SweepPass(start_lr=1e-7, end_lr=10, suggestion=NO_SUGGESTION, extension="x"),
        SweepPass(start_lr=1e-10, end_lr=10, suggestion=NO_SUGGESTION),
    )
    test = dataclasses.replace(result(), suggestion=NO_SUGGESTION, passes=passes, curve_pass=1)
    assert describe_passes(test) == "2 passes: 1.0e-07 to 1.0e+01, 1.0e-10 to 1.0e+01; the verdict is from pass 2"


def test_confirmation_runs_are_counted_by_outcome() -> None:
    """The sweep's own suggestion stands beside theirs."""
    confirmation = Confirmation(
        schedule="cosine",
        monitored="validation loss",
        horizon=1000,
        budget_steps=500,
        sweep=SUGGESTION,
        measured_steps=200,
    )
    trials = (trial(0), trial(1, outcome=TrialOutcome.DIVERGED), trial(2, num_steps=200))
    assert describe_trials(dataclasses.replace(result(), trials=trials, confirmation=confirmation)) == (
        "3 confirmation runs of 100 to 200 steps (cosine schedule, 2 finished, 1 diverged) compared on the validation "
        "loss, extrapolated from 200 to 1000 steps; the sweep alone: 1.2e-03   [6.0e-04, 2.4e-03]"
    )


@pytest.mark.parametrize(
    ("lr", "end"),
    [
        (2e-3, ""),
        (9e-4, "; the suggested LR lies outside the LRs tried (1.0e-03 to 4.0e-03): extrapolated"),
        (5e-3, "; the suggested LR lies outside the LRs tried (1.0e-03 to 4.0e-03): extrapolated"),
    ],
)
def test_the_best_run_stands_beside_a_suggestion_that_no_run_has_measured(lr: float, end: str) -> None:
    """An LR that nobody has trained with is believed less than one that somebody has."""
    confirmation = Confirmation(
        schedule="cosine",
        monitored="validation loss",
        horizon=1000,
        budget_steps=500,
        sweep=SUGGESTION,
        measured_steps=200,
    )
    trials = tuple(
        dataclasses.replace(trial(number, num_steps=num_steps), lr=trial_lr, loss=loss)
        for number, (trial_lr, num_steps, loss) in enumerate([(1e-3, 200, 0.6), (2e-3, 200, 0.5), (4e-3, 200, 0.9)])
    )
    test = dataclasses.replace(result(dataclasses.replace(SUGGESTION, lr=lr)), trials=trials, confirmation=confirmation)
    measured = "LR 2.0e-03, validation loss 0.5 after 200 steps"
    assert describe_best_trial(test) == measured + end
    content = suggestion_content(test)["confirmation"]
    assert (content["best_trial_lr"], content["is_outside_trials"]) == (2e-3, bool(end))
    lines = closing_lines(test, JOB, directory="a", mlflow=None)
    assert any(line.startswith(f"best trial:   {measured}") for line in lines)


def test_a_best_run_at_the_end_of_those_tried_is_said() -> None:
    """A better LR may lie beyond it."""
    confirmation = Confirmation(
        schedule="cosine", monitored="loss", horizon=400, budget_steps=500, sweep=SUGGESTION, measured_steps=100
    )
    trials = tuple(dataclasses.replace(trial(i), lr=lr, loss=lr) for i, lr in enumerate((1e-3, 2e-3)))
    test = dataclasses.replace(result(), trials=trials, confirmation=confirmation)
    end = "; nothing lower was tried (confirm.budget_steps)"
    assert describe_best_trial(test) == f"LR 1.0e-03, loss 0.001 after 100 steps{end}"


def test_confirmation_that_failed_gives_its_reason() -> None:
    """Whether or not a run was made."""
    confirmation = Confirmation(
        schedule="constant",
        monitored="training loss",
        horizon=None,
        budget_steps=10,
        sweep=NO_SUGGESTION,
        failure_reason="no budget",
    )
    assert describe_trials(dataclasses.replace(result(), confirmation=confirmation)) == "not confirmed: no budget"
    assert describe_trials(dataclasses.replace(result(), trials=(trial(0),), confirmation=confirmation)) == (
        "1 confirmation run of 100 steps (constant schedule, 1 finished) compared on the training loss, "
        "not confirmed: no budget"
    )


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (None, ""),
        (
            NoiseScale(critical_batch_size=210.4, low=150.0, high=330.0, num_steps=60),
            "critical batch size: 210   [150, 330]   (global batch 64: a larger one pays)",
        ),
        (
            NoiseScale(critical_batch_size=20.0, low=15.0, high=33.0, num_steps=60),
            "critical batch size: 20   [15, 33]   (global batch 64: a larger one hardly pays)",
        ),
        (
            NoiseScale(critical_batch_size=50.0, low=15.0, high=None, num_steps=60),
            "critical batch size: 50   [15, no limit]   (global batch 64: about critical)",
        ),
        (
            NoiseScale(low=1500.0, num_steps=60, reason="the mean gradient does not stand out from its noise"),
            "critical batch size: above 1.5e+03   (the mean gradient does not stand out from its noise)"
            "   (global batch 64: a larger one pays)",
        ),
    ],
)
def test_the_critical_batch_size_is_compared_with_the_swept_one(noise: NoiseScale | None, text: str) -> None:
    """Nothing is shown where nobody asked."""
    assert describe_noise_scale(dataclasses.replace(result(), noise_scale=noise)) == text


def test_an_interrupted_run_has_no_verdict_but_the_command_that_goes_on() -> None:
    """Half a curve supports nothing, and what was measured is not lost."""
    lines = interrupted_lines(
        "interrupted at step 30 on rank 0", resume="lrrunner run.resume=runs/a", picture="runs/a/lr_sweep.png"
    )
    assert lines == [
        "interrupted:  at step 30 on rank 0",
        "go on with:   lrrunner run.resume=runs/a",
        "picture:      runs/a/lr_sweep.png",
    ]
    assert interrupted_lines("stopped at once", resume=None) == ["interrupted:  stopped at once"]


def test_the_note_of_an_unfinished_run_says_the_same() -> None:
    """In note.md and in MLflow."""
    text = unfinished_note(RunState.KILLED, cause="interrupted at step 30", resume="lrrunner run.resume=a")
    assert text == ("**Killed**: interrupted at step 30\n\nTo go on with it:\n\n```\nlrrunner run.resume=a\n```\n")
    assert (
        unfinished_note(RunState.FAILED, cause="rank 1: killed by SIGKILL") == "**Failed**: rank 1: killed by SIGKILL\n"
    )
    assert "](lr_sweep.png)" in unfinished_note(RunState.KILLED, cause="x", has_figure=True)


def test_a_range_test_that_is_read_back_ends_with_the_same_lines() -> None:
    """A finished run that is resumed prints them once more, and draws the picture from its files."""
    passes = (
        SweepPass(start_lr=1e-7, end_lr=10.0, suggestion=NO_SUGGESTION, extension="the loss does not diverge"),
        SweepPass(start_lr=1e-7, end_lr=1e3, suggestion=SUGGESTION),
    )
    confirmation = Confirmation(
        schedule="cosine",
        monitored="validation loss",
        horizon=1000,
        budget_steps=500,
        sweep=dataclasses.replace(SUGGESTION, lr=3e-3),
        measured_steps=100,
    )
    trials = (trial(0), trial(1, outcome=TrialOutcome.DIVERGED))
    test = dataclasses.replace(
        result(),
        stops=(Stop(reason=StopReason.DIVERGED, step=50, sweep_pass=1),),
        passes=passes,
        curve_pass=1,
        trials=trials,
        confirmation=confirmation,
        group_ratios=(1.0, 0.1),
    )
    content = json.loads(json.dumps(suggestion_content(test)))
    again = range_test_from(content, test.steps, trials)
    assert closing_lines(again, JOB, directory="a", mlflow=None) == closing_lines(test, JOB, directory="a", mlflow=None)
    assert again.group_lrs == pytest.approx(test.group_lrs)
    assert [each.extension for each in again.passes] == ["the loss does not diverge", ""]


def test_the_note_shows_what_the_estimate_is_made_of() -> None:
    """Which observation says what, and how much it counts."""
    evidence = {"half_fall": {"lr": 2e-3, "weight": 0.25}, "prior": {"lr": 7e-3, "weight": 0.75}}
    text = note(result(dataclasses.replace(SUGGESTION, evidence=evidence)), JOB, command="lrrunner", directory="/a")
    assert "| half of the fall is over | 2.0e-03 | 25% |\n| LRs of this kind of optimizer | 7.0e-03 | 75% |\n" in text


def test_every_observation_has_its_words() -> None:
    """A new landmark must not break the note."""
    assert set(EVIDENCE_TEXTS) == {*NAMES, "prior"}
