"""Progress of a range test in a script or notebook."""

from __future__ import annotations

import logging
from typing import Any

from lrrunner.config.schema import Config
from lrrunner.core.range_extension import Extension
from lrrunner.core.trial_planning import PlannedTrial
from lrrunner.records import Step, Trial, TrialOutcome
from lrrunner.reporting.progress_bar import progress_bar, show
from lrrunner.sweep.auto_range import Passes

logger = logging.getLogger(__name__)


class ScriptProgress:
    """Shows a progress bar for each pass and confirmation run on rank 0, and keeps the runs that have ended.

    Args:
        job: The configuration.
        is_shown: Whether this rank shows anything; all ranks share one terminal.

    Attributes:
        trials: Confirmation runs that have ended, in order.
        trial_steps: Steps of each confirmation run, in order.
    """

    def __init__(self, job: Config, *, is_shown: bool) -> None:
        self._num_steps = job.sweep.num_steps * job.sweep.repeats
        self._is_shown = is_shown
        self._bar: Any = None
        self.trials: list[Trial] = []
        self.trial_steps: list[list[Step]] = []

    def begin_pass(self, number: int) -> None:
        """Begin the bar of a pass."""
        self._replace_bar(f"LR sweep, pass {number + 1}" if number else "LR sweep", num_steps=self._num_steps)

    def on_step(self, step: Step) -> None:
        """Advance the bar."""
        if self._bar is not None:
            show(self._bar, step)

    def on_extension(self, extension: Extension) -> None:
        """Log at WARNING: a script that has not configured logging shows nothing below."""
        if self._is_shown:
            text = "%s: sweeping again from %.1e to %.1e"
            logger.warning(text, extension.reason, extension.start_lr, extension.end_lr)

    def on_passes(self, passes: Passes) -> None:
        """The sweep has ended."""
        self.close()

    def begin_trial(self, number: int, planned: PlannedTrial) -> None:
        """Begin the bar of a confirmation run."""
        self.trial_steps.append([])
        self._replace_bar(f"trial {number + 1}, lr {planned.lr:.1e}", num_steps=planned.num_steps)

    def on_trial_step(self, number: int, step: Step) -> None:
        """Keep the step, and advance the bar."""
        self.trial_steps[number].append(step)
        self.on_step(step)

    def on_trial(self, trial: Trial) -> None:
        """Keep a run that has ended."""
        if trial.outcome != TrialOutcome.INTERRUPTED:
            self.trials.append(trial)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _replace_bar(self, label: str, *, num_steps: int) -> None:
        self.close()
        if self._is_shown:
            self._bar = progress_bar(label, num_steps=num_steps)
