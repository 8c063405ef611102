"""A progress bar."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from lrrunner.records import Step


def progress_bar(words: str, *, num_steps: int) -> Any:
    """A bar on standard error, quiet when that is not a terminal."""
    return tqdm(total=num_steps, desc=words, unit="step", disable=None, dynamic_ncols=True)


def show(bar: Any, step: Step) -> None:
    """One more record."""
    if not bar.disable:
        bar.set_postfix_str(f"lr {step.lr:.1e}, loss {step.smoothed_loss:.4g}", refresh=False)
        bar.update(not step.skipped)
