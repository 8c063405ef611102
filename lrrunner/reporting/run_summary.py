"""Text about a finished run: the closing lines on standard output, and the note in Markdown."""

from __future__ import annotations

import math

from lrrunner.config.schema import Config, Monitor, SweepConfig, batch_summary, budget_steps
from lrrunner.core.confirmation import Difference, differences
from lrrunner.core.lr_estimate import REFERENCE_NUM_STEPS
from lrrunner.core.measured_trials import best_measured_trial, is_outside_trials
from lrrunner.core.trial_estimate import interval_error, regret_with_trials
from lrrunner.core.trial_planning import NUM_TRIALS
from lrrunner.records import (
    Confirmation,
    RangeTestResult,
    Stop,
    StopReason,
    Suggestion,
    Training,
    TrialOutcome,
    Verdict,
)
from lrrunner.results.artifacts import FIGURE_FILE
from lrrunner.results.run_state import RunState
from lrrunner.system.output.terminal import labelled_line, wrapped_line

FIGURE_LINK = f"![LR sweep]({FIGURE_FILE})"
WORTH_LOWERING = 0.03
"""Expected regret from which on the closing lines say what would lower it."""

EVIDENCE_TEXTS = {
    "half_fall": "half of the fall is over",
    "most_of_fall": "nine tenths of the fall are over",
    "minimum": "the loss is lowest",
    "blow_up": "the loss blows up",
    "gradient_rise": "the gradient grows",
    "prior": "LRs of this kind of optimizer",
}
"""Observations of `auto` in words."""

STOP_TEXTS = {
    StopReason.END_OF_SCHEDULE: "every step of the LR schedule was applied",
    StopReason.DIVERGED: "the smoothed loss diverged",
    StopReason.NON_FINITE: "the loss was not finite",
    StopReason.NO_ITEMS: "no rank had items to learn from",
    StopReason.INTERRUPTED: "a stop was requested",
}


def closing_lines(test: RangeTestResult, job: Config, *, directory: str, mlflow: str | None) -> list[str]:
    """The last lines on standard output: the answer first, at most 80 columns but for paths and commands.

    Args:
        test: The result.
        job: The configuration.
        directory: The run directory.
        mlflow: Where the MLflow run is, or the command that opens it; None if there is none.
    """
    suggestion = test.suggestion
    lines = wrapped_line("", str(suggestion))
    if suggestion.lr is not None:
        lines.append(labelled_line("train with", f"optimizer.lr={suggestion.lr:.3g}"))
        if suggestion.verdict != Verdict.OK:
            lines += wrapped_line("why", suggestion.reason)
    for label, text in _details(test, job).items():
        lines += wrapped_line(label, text)
    lines.append(labelled_line("picture", f"{directory}/{FIGURE_FILE}"))
    if mlflow is not None:
        lines.append(labelled_line("mlflow", mlflow))
    if suggestion.lr is not None:
        lines += wrapped_line("training", describe_training(test.training))
    return [*lines, *wrapped_line("batch", batch_summary(job, world_size=test.world_size))]


def interrupted_lines(
    cause: str, *, resume: str | None, picture: str | None = None, mlflow: str | None = None
) -> list[str]:
    """The last lines on standard output of a run that a signal has ended: no verdict, but what goes on with it.

    Args:
        cause: What ended it, and where.
        resume: The command that goes on with it; None where nothing is recorded.
        picture: Its figure so far; None if there is none.
        mlflow: As for :func:`closing_lines`.
    """
    lines = wrapped_line("interrupted", cause.removeprefix("interrupted "))
    for label, text in (("go on with", resume), ("picture", picture), ("mlflow", mlflow)):
        if text is not None:
            lines.append(labelled_line(label, text))
    return lines


def unfinished_note(state: RunState, *, cause: str, resume: str | None = None, has_figure: bool = False) -> str:
    """As :func:`note`, for a run that has not finished: no verdict, but what goes on with it."""
    figure = f"\n{FIGURE_LINK}\n" if has_figure else ""
    go_on = "" if resume is None else f"\nTo go on with it:\n\n```\n{resume}\n```\n"
    return f"**{state.text}**: {cause}\n{figure}{go_on}"


def note(test: RangeTestResult, job: Config, *, command: str, directory: str) -> str:
    """The content of note.md and of the MLflow run's description, in Markdown.

    Args:
        test: The result.
        job: The configuration.
        command: The command that repeats the run.
        directory: The run directory.
    """
    details = "".join(f"{_sentence(f'{label}: {text}')}\n" for label, text in _details(test, job).items())
    return f"""{_headline(test.suggestion)}

{_sentence(test.suggestion.reason)}

{FIGURE_LINK}

{details}The sweep ended at step {test.stop.step} of {job.sweep.num_steps}: {describe_stop(test.stop)}.

{batch_summary(job, world_size=test.world_size)}

{_rule_table(test.suggestion)}
{_evidence_table(test.suggestion)}{_trial_table(test)}
Run directory: `{directory}`. To repeat it:

```
{command}
```
"""


def link_figure(note: str, *, run_id: str) -> str:
    """A note with its figure where MLflow serves it."""
    return note.replace(FIGURE_LINK, f"![LR sweep](get-artifact?path={FIGURE_FILE}&run_uuid={run_id})")


def describe_training(training: Training) -> str:
    """The length and schedule of the training that the suggestion is for.

    >>> describe_training(Training(num_steps=5000, schedule="cosine"))
    '5000 steps, cosine schedule'
    """
    num_steps = training.num_steps or REFERENCE_NUM_STEPS
    if training.num_steps is None or training.is_assumed:
        return f"about {num_steps} steps, {training.schedule}; set train.num_steps for another length"
    return f"{num_steps} steps, {training.schedule} schedule"


def describe_expected_regret(test: RangeTestResult, job: Config) -> str:
    """What the LR is expected to lose, and what would lower it; empty without a suggestion."""
    suggestion, training = test.suggestion, test.training
    if suggestion.expected_regret is None or suggestion.interval is None:
        return ""
    text = f"{suggestion.expected_regret:.0%} of the possible gain"
    if suggestion.expected_regret < WORTH_LOWERING:
        return text
    if test.confirmation is not None:
        return f"{text}; less with a larger confirm.budget_steps"
    budget = budget_steps(job)
    lowered = regret_with_trials(
        interval_error(*suggestion.interval),
        trial_steps=max(1, budget // NUM_TRIALS),
        training_steps=training.num_steps or REFERENCE_NUM_STEPS,
    )
    return f"{text}; {lowered:.0%} with confirm.enabled=true ({budget} steps)"


def describe_monitor(sweep: SweepConfig) -> str:
    """Which loss the curve is; empty for the training loss of every step.

    >>> describe_monitor(SweepConfig(monitor=Monitor.val, val_every=2))
    'judged by the validation loss after every 2nd step'
    """
    if sweep.monitor == Monitor.train:
        return ""
    ordinal = {1: "", 2: "2nd ", 3: "3rd "}.get(sweep.val_every, f"{sweep.val_every}th ")
    return f"judged by the validation loss after every {ordinal}step"


def describe_passes(test: RangeTestResult) -> str:
    """Which LR ranges were swept, and which pass the result is from; empty for a single pass."""
    if len(test.passes) < 2:
        return ""
    ranges = ", ".join(f"{each.start_lr:.1e} to {each.end_lr:.1e}" for each in test.passes)
    chosen = len(test.passes) if test.curve_pass is None else test.curve_pass + 1
    what = "verdict" if test.suggestion.lr is None else "suggestion"
    return f"{len(test.passes)} passes: {ranges}; the {what} is from pass {chosen}"


def describe_noise_scale(test: RangeTestResult) -> str:
    """The critical batch size compared with the one that was swept; empty if it was not measured."""
    noise = test.noise_scale
    if noise is None:
        return ""
    if noise.low is None:
        return str(noise)
    batch = test.global_batch_size
    worth = "about critical"
    if batch < noise.low:
        worth = "a larger one pays"
    elif noise.high is not None and batch > noise.high:
        worth = "a larger one hardly pays"
    return f"{noise}   (global batch {batch}: {worth})"


def describe_trials(test: RangeTestResult) -> str:
    """How the confirmation runs ended, and what the sweep alone suggests; empty without confirmation."""
    confirmation = test.confirmation
    if confirmation is None:
        return ""
    not_confirmed = f"not confirmed: {confirmation.failure_reason}" if confirmation.failure_reason else ""
    if not test.trials:
        return not_confirmed
    parts = [_describe_outcomes(test, confirmation), not_confirmed, _describe_extrapolation(confirmation)]
    return ", ".join(filter(None, parts)) + _describe_sweep(confirmation.sweep)


def describe_best_trial(test: RangeTestResult) -> str:
    """What was measured beside what is suggested; empty where nothing was confirmed."""
    best, confirmation = best_measured_trial(test), test.confirmation
    if best is None or confirmation is None:
        return ""
    measured = f"LR {best.lr:.1e}, {confirmation.monitored} {best.loss:.4g} after {best.num_steps} steps"
    lrs = [trial.lr for trial in test.trials]
    if not is_outside_trials(test):
        ends = {max(lrs): "higher", min(lrs): "lower"} if len(lrs) > 1 else {}
        return f"{measured}; nothing {ends[best.lr]} was tried (confirm.budget_steps)" if best.lr in ends else measured
    return f"{measured}; the suggested LR lies outside the LRs tried ({min(lrs):.1e} to {max(lrs):.1e}): extrapolated"


def describe_stop(stop: Stop) -> str:
    """Why the sweep ended."""
    on_ranks = stop.reason == StopReason.NON_FINITE and stop.ranks
    return STOP_TEXTS[stop.reason] + (f" on rank {', '.join(map(str, stop.ranks))}" if on_ranks else "")


def _details(test: RangeTestResult, job: Config) -> dict[str, str]:
    """Label -> what there is to say beside the suggestion."""
    texts = {
        "may lose": describe_expected_regret(test, job),
        "range": describe_passes(test),
        "curve": describe_monitor(job.sweep),
        "trials": describe_trials(test),
        "best trial": describe_best_trial(test),
        "noise": describe_noise_scale(test),
    }
    return {label: text for label, text in texts.items() if text}


def _describe_outcomes(test: RangeTestResult, confirmation: Confirmation) -> str:
    lengths = sorted({trial.num_steps for trial in test.trials})
    length = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    outcomes = [trial.outcome for trial in test.trials]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in TrialOutcome if outcome in outcomes]
    runs = "1 confirmation run" if len(outcomes) == 1 else f"{len(outcomes)} confirmation runs"
    return (
        f"{runs} of {length} steps ({confirmation.schedule} schedule, {', '.join(counts)}) compared on the "
        f"{confirmation.monitored}"
    )


def _describe_extrapolation(confirmation: Confirmation) -> str:
    """From which length of run to which the confirmed LR was scaled; empty if it was not."""
    if not confirmation.is_extrapolated:
        return ""
    return f"extrapolated from {confirmation.measured_steps} to {confirmation.horizon} steps"


def _describe_sweep(sweep: Suggestion) -> str:
    """What the sweep suggests without confirmation; empty if it suggests nothing."""
    if sweep.lr is None or sweep.interval is None:
        return ""
    return f"; the sweep alone: {sweep.lr:.1e}   [{sweep.interval[0]:.1e}, {sweep.interval[1]:.1e}]"


def _headline(suggestion: Suggestion) -> str:
    if suggestion.lr is None or suggestion.interval is None:
        return f"**No suggested LR** (verdict: {suggestion.verdict})"
    low, high = suggestion.interval
    return f"**Suggested LR {suggestion.lr:.2e}**, interval [{low:.1e}, {high:.1e}] (verdict: {suggestion.verdict})"


def _rule_table(suggestion: Suggestion) -> str:
    rows = [f"| {name} | {'none' if lr is None else f'{lr:.2e}'} |" for name, lr in suggestion.candidates.items()]
    return "| rule | LR |\n|---|---|\n" + "\n".join(rows)


def _evidence_table(suggestion: Suggestion) -> str:
    """What `auto` is the mean of."""
    rows = [
        f"| {EVIDENCE_TEXTS[name]} | {each['lr']:.1e} | {each['weight']:.0%} |"
        for name, each in suggestion.evidence.items()
    ]
    if not rows:
        return ""
    return "\n| evidence of auto | best LR by it | weight |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _trial_table(test: RangeTestResult) -> str:
    if not test.trials:
        return ""
    rows = "\n".join(
        f"| {trial.lr:.2e} | {trial.num_steps_run} of {trial.num_steps} | "
        f"{f'{trial.loss:.4g}' if trial.outcome == TrialOutcome.FINISHED else trial.outcome} | {_above(difference)} |"
        for trial, difference in zip(test.trials, differences(test.trials), strict=True)
    )
    return f"\n| confirmation run | steps | loss | above the best |\n|---|---|---|---|\n{rows}\n"


def _above(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.value == 0:
        return "best"
    return f"{difference.value:.2g}" + ("" if math.isnan(difference.error) else f" ± {difference.error:.1g}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
