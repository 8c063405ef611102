"""A progress bar over the steps of a sweep."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from lrrunner.records import Step


def progress_bar(label: str, *, num_steps: int) -> Any:
    """A progress bar on standard error; it shows nothing if that is not a terminal."""
    return tqdm(total=num_steps, desc=label, unit="step", disable=None, dynamic_ncols=True)


def show(bar: Any, step: Step) -> None:
    """Advance the bar by one step, unless it was skipped."""
    if not bar.disable:
        bar.set_postfix_str(f"lr {step.lr:.1e}, loss {step.smoothed_loss:.4g}", refresh=False)
        bar.update(not step.skipped)
