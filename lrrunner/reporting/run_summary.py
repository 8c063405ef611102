"""What a person reads at the end: closing lines, and the description of the MLflow run. No torch."""

from __future__ import annotations

from lrrunner.config.schema import Config, Monitor, SweepConfig, batch_summary
from lrrunner.records import Confirmation, RangeTestResult, Stop, Suggestion, TrialOutcome


def closing_lines(test: RangeTestResult, job: Config, *, directory: str, mlflow: str | None) -> list[str]:
    """The last lines on standard output."""
    where = f"{directory}" if mlflow is None else f"{directory}   mlflow: {mlflow}"
    lines = [str(test.suggestion), f"run: {where}   ({batch_summary(job, world_size=test.world_size)})"]
    if test.suggestion.lr is not None:
        lines.insert(0, f"to train with it: optimizer.lr={test.suggestion.lr:.3g}")
    return _describe_more(test, job) + lines


def _describe_more(test: RangeTestResult, job: Config) -> list[str]:
    """What there is beside the suggestion."""
    all_words = describe_passes(test), describe_monitor(job.sweep), describe_trials(test), describe_noise_scale(test)
    return [words for words in all_words if words]


def describe_monitor(sweep: SweepConfig) -> str:
    """Which loss the curve is; empty where it is the training loss of every step.

    >>> describe_monitor(SweepConfig(monitor=Monitor.val, val_every=2))
    'judged by the validation loss behind every 2nd step'
    """
    if sweep.monitor == Monitor.train:
        return ""
    ordinal = {1: "", 2: "2nd ", 3: "3rd "}.get(sweep.val_every, f"{sweep.val_every}th ")
    return f"judged by the validation loss behind every {ordinal}step"


def describe_passes(test: RangeTestResult) -> str:
    """Which ranges were swept and which one the suggestion is from; empty where there was one only."""
    if len(test.passes) < 2:
        return ""
    ranges = ", ".join(f"{ladder.start_lr:.1e} to {ladder.end_lr:.1e}" for ladder in test.passes)
    chosen = len(test.passes) if test.curve_pass is None else test.curve_pass + 1
    return f"{len(test.passes)} passes: {ranges}; the suggestion is from pass {chosen}"


def describe_noise_scale(test: RangeTestResult) -> str:
    """The critical batch size beside the one that was swept; empty where nobody asked."""
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
    """How the confirmation runs went, beside what the sweep alone says; empty where nothing was to be confirmed."""
    confirmation = test.confirmation
    if confirmation is None:
        return ""
    not_confirmed = f"not confirmed: {confirmation.failure_reason}" if confirmation.failure_reason else ""
    if not test.trials:
        return not_confirmed
    lengths = sorted({trial.num_steps for trial in test.trials})
    outcomes = [trial.outcome for trial in test.trials]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in TrialOutcome if outcome in outcomes]
    of = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    runs = "1 confirmation run" if len(outcomes) == 1 else f"{len(outcomes)} confirmation runs"
    words = [
        f"{runs} of {of} steps ({confirmation.schedule} schedule, {', '.join(counts)}) compared on the "
        f"{confirmation.monitored}",
        *([not_confirmed] if not_confirmed else []),
        *([_extrapolation(confirmation)] if confirmation.is_extrapolated else []),
    ]
    return ", ".join(words) + _alone(confirmation.sweep)


def _extrapolation(confirmation: Confirmation) -> str:
    """From which length of run to which the confirmed LR was brought."""
    return f"extrapolated from {confirmation.measured_steps} to {confirmation.horizon} steps"


def _alone(sweep: Suggestion) -> str:
    """What the sweep says without confirmation."""
    if sweep.lr is None or sweep.interval is None:
        return ""
    return f"; the sweep alone: {sweep.lr:.1e}   [{sweep.interval[0]:.1e}, {sweep.interval[1]:.1e}]"


def describe_stop(stop: Stop) -> str:
    """Why the ladder ended, for a reader."""
    ranks = ", ".join(map(str, stop.ranks))
    words = {
        "end_of_ladder": "the ladder was climbed to its end",
        "diverged": "the smoothed loss diverged",
        "non_finite": f"the loss was not finite on rank {ranks}" if ranks else "the loss was not finite",
        "interrupted": "it was asked to stop",
    }
    return words[stop.reason]


PICTURE = "![LR sweep](lr_sweep.png)"


def with_picture(note: str, *, run_id: str) -> str:
    """A run's note with its picture where MLflow serves it."""
    return note.replace(PICTURE, f"![LR sweep](get-artifact?path=lr_sweep.png&run_uuid={run_id})")


def note(test: RangeTestResult, job: Config, *, command: str, directory: str) -> str:
    """Markdown for the MLflow run's description and for note.md."""
    suggestion = test.suggestion
    if suggestion.lr is None or suggestion.interval is None:
        headline = f"**No suggested LR** (verdict: {suggestion.verdict})"
    else:
        low, high = suggestion.interval
        headline = (
            f"**Suggested LR {suggestion.lr:.2e}**, interval [{low:.1e}, {high:.1e}] (verdict: {suggestion.verdict})"
        )
    others = "\n".join(
        f"| {name} | {'none' if lr is None else f'{lr:.2e}'} |" for name, lr in suggestion.candidates.items()
    )
    more = "".join(f"{words[0].upper()}{words[1:]}.\n" for words in _describe_more(test, job))
    return f"""{headline}

{suggestion.reason[0].upper()}{suggestion.reason[1:]}.
{more}The sweep ended at step {test.stop.step} of {job.sweep.num_steps}: {describe_stop(test.stop)}.

{PICTURE}

{batch_summary(job, world_size=test.world_size)}

| rule | LR |
|---|---|
{others}
{_trial_table(test)}
Run directory: `{directory}`. To repeat it:

```
{command}
```
"""


def _trial_table(test: RangeTestResult) -> str:
    if not test.trials:
        return ""
    rows = "\n".join(
        f"| {trial.lr:.2e} | {trial.num_steps_run} of {trial.num_steps} | "
        f"{f'{trial.loss:.4g}' if trial.outcome == TrialOutcome.FINISHED else trial.outcome} |"
        for trial in test.trials
    )
    return f"\n| confirmation run | steps | loss |\n|---|---|---|\n{rows}\n"
