"""What a run has measured, held in one place: the run directory, MLflow and the figure take it from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrrunner.records import Step, Trial
from lrrunner.results.writer import RunDirectory


@dataclass(kw_only=True)
class RunRecords:
    """Every record of a run, in order.

    Attributes:
        steps: Steps of the sweep, of all passes and repeats.
        trial_steps: Steps of each confirmation run, by its number.
        trials: Confirmation runs that have ended.
    """

    steps: list[Step] = field(default_factory=list)
    trial_steps: dict[int, list[Step]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    @property
    def last_step(self) -> int | None:
        """Number of the last step of the sweep; None before the first."""
        return self.steps[-1].step if self.steps else None

    def trial_end_ms(self, number: int) -> int:
        """Unix time in milliseconds of the last step of a confirmation run; 0 if it has none."""
        steps = self.trial_steps.get(number)
        return steps[-1].timestamp_ms if steps else 0


class Recorder:
    """Writes each record of a running job to its run directory and keeps it. Rank 0 only.

    A record is kept as it is on disk: in a resumed run, with the times of the attempt that wrote it first.

    Args:
        directory: The run directory.
        schedule: Name of the schedule of confirmation runs, for trials.csv.

    Attributes:
        records: What has been recorded so far.
    """

    def __init__(self, directory: RunDirectory, *, schedule: str) -> None:
        self._directory, self._schedule = directory, schedule
        self.records = RunRecords()

    def record(self, step: Step) -> Step:
        """Record a step of the sweep; returns it as kept."""
        step = self._directory.record(step)
        self.records.steps.append(step)
        return step

    def record_trial_step(self, number: int, step: Step) -> Step:
        """Record a step of a confirmation run; returns it as kept."""
        step = self._directory.record_trial_step(number, step)
        self.records.trial_steps.setdefault(number, []).append(step)
        return step

    def record_trial(self, trial: Trial) -> None:
        """Record the end of a confirmation run."""
        self._directory.record_trial(trial, schedule=self._schedule)
        self.records.trials.append(trial)
