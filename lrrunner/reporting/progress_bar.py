"""A progress bar over the steps of a sweep in a script or notebook."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

from lrrunner.records import Step


def progress_bar(label: str, *, num_steps: int) -> Any:
    """A progress bar: a widget in a notebook that has widgets, else text on standard error.

    It shows nothing if standard error is neither a terminal nor a notebook's.
    """
    is_disabled = False if _is_notebook() else None  # None: unless it is a terminal
    return tqdm(total=num_steps, desc=label, unit="step", disable=is_disabled, dynamic_ncols=True, leave=False)


def show(bar: Any, step: Step) -> None:
    """Advance the bar by one step, unless it was skipped."""
    if not bar.disable:
        bar.set_postfix_str(f"lr {step.lr:.1e}, loss {step.smoothed_loss:.4g}", refresh=False)
        bar.update(not step.skipped)


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
