"""What a person reads at the end: closing lines, and the description of the MLflow run. No torch."""

from __future__ import annotations

from lrrunner.config import Config, batch_summary
from lrrunner.records import RangeTest, Stop


def closing_lines(test: RangeTest, job: Config, *, directory: str, mlflow: str | None) -> list[str]:
    """The last lines on standard output."""
    where = f"{directory}" if mlflow is None else f"{directory}   mlflow: {mlflow}"
    lines = [str(test.suggestion), f"run: {where}   ({batch_summary(job, world_size=test.world_size)})"]
    if test.suggestion.lr is not None:
        lines.insert(0, f"to train with it: optimizer.lr={test.suggestion.lr:.3g}")
    return lines


def stop_in_words(stop: Stop) -> str:
    """Why the ladder ended, for a reader."""
    ranks = ", ".join(map(str, stop.ranks))
    words = {
        "end_of_ladder": "the ladder was climbed to its end",
        "diverged": "the smoothed loss diverged",
        "non_finite": f"the loss was not finite on rank {ranks}" if ranks else "the loss was not finite",
        "interrupted": "it was asked to stop",
    }
    return words[stop.reason]


def note(test: RangeTest, job: Config, *, run_id: str, command: str, directory: str) -> str:
    """Markdown for the MLflow run's description."""
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
    return f"""{headline}

{suggestion.reason[0].upper()}{suggestion.reason[1:]}.
The sweep ended at step {test.stop.step} of {job.sweep.num_steps}: {stop_in_words(test.stop)}.

![LR sweep](get-artifact?path=lr_sweep.png&run_uuid={run_id})

{batch_summary(job, world_size=test.world_size)}

| rule | LR |
|---|---|
{others}

Run directory: `{directory}`. To repeat it:

```
{command}
```
"""
