"""The result of the library call: records, figure, run directory, MLflow run."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lrrunner.config.schema import DEFAULT_EXPERIMENT, Config, batch_summary
from lrrunner.library.arguments.argument_names import argument_errors
from lrrunner.library.record_arrays import Records
from lrrunner.records import RangeTestResult, Step
from lrrunner.reporting import run_summary
from lrrunner.results.artifacts import FIGURE_FILE, NOTE_FILE
from lrrunner.results.resume_checks import code_versions
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.names.run_names import default_run_name
from lrrunner.tracking.store.connection import Connection, connect, script_tracking
from lrrunner.tracking.store.failures import UploadFailure
from lrrunner.tracking.store.runs import create_run
from lrrunner.tracking.upload.mlflow_run import RunEnd, join_run
from lrrunner.training.optimizer.learning_rate import LearningRate
from lrrunner.training.optimizer.optimizers import unwrapped
from lrrunner.version import __version__

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECTIONS = ("model", "data", "objective", "optimizer", "sweep", "suggestion", "confirm", "train")
"""The sections of a configuration that a call has."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RangeTest(RangeTestResult):
    """The result of a range test in a script, the same on every rank.

    Attributes:
        job: The call as a configuration.
        call: The call as Python source.
        rank: The rank of this process; only rank 0 writes.
        trial_steps: Steps of each confirmation run, in order.
    """

    job: Config
    call: str
    rank: int = 0
    trial_steps: tuple[tuple[Step, ...], ...] = ()

    def __repr__(self) -> str:
        return f"RangeTest({self.suggestion}   ({batch_summary(self.job, world_size=self.world_size)}))"

    @property
    def records(self) -> Records:
        """The records of all steps as arrays."""
        return Records(self.steps)

    def _repr_html_(self) -> str:
        """The figure, and tables of suggestion and confirmation runs, for notebooks."""
        from lrrunner.reporting.notebook_html import notebook_html

        return notebook_html(self, self.job)

    @overload
    def plot(self) -> Figure: ...

    @overload
    def plot(self, *, ax: Axes) -> Axes: ...

    def plot(self, *, ax: Axes | None = None) -> Figure | Axes:
        """A figure of the curve, the suggested LR with its interval, every rule's LR, the stop, and confirmation runs.

        Args:
            ax: Axes of the script's own figure, on which to draw curve, suggestion and stop instead, in its own style.

        Returns:
            The figure, or ``ax``.

        Raises:
            TypeError: ``ax`` is not matplotlib's.
        """
        from matplotlib.axes import Axes

        from lrrunner.reporting.sweep_figure import draw_sweep, job_figure

        if ax is None:
            return job_figure(self, self.job)
        if not isinstance(ax, Axes):
            raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}; give the Axes of plt.subplots()")
        draw_sweep(ax, self, beta=self.job.sweep.smoothing)
        return ax

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the suggested LR on an optimizer, keeping the ratios between its parameter groups.

        A scheduler keeps the LRs it was constructed with; construct it afterwards.

        Args:
            optimizer: Prepared by Accelerate or not.

        Raises:
            ValueError: The suggestion has no LR.
        """
        suggestion = self.suggestion
        if suggestion.lr is None:
            raise ValueError(
                f"suggestion.lr must be a number to be applied, got none (verdict {suggestion.verdict}: "
                f"{suggestion.reason}); test its value before"
            )
        LearningRate(unwrapped(optimizer)).apply(suggestion.lr)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write a run directory like that of the command line. Rank 0 writes.

        Args:
            directory: A new or empty directory.

        Returns:
            The directory.

        Raises:
            ValueError: The directory cannot be written, or holds a run already.
        """
        path = Path(directory)
        if self.rank == 0:
            self._write(path, shown=str(path))
        return path

    def log_to_mlflow(
        self,
        *,
        uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        """Log the result as an MLflow run, a child of the script's active run if there is one. Rank 0 logs.

        Args:
            uri: Tracking URI; None is the one that the script uses.
            experiment: Name of the experiment; None is the script's, or ``lrrunner``.
            run_name: Name of the run.
            tags: Further tags.

        Returns:
            The run's id; None on other ranks.

        Raises:
            ValueError: The store cannot be used.
            ConnectionError: The store does not answer.
        """
        if self.rank != 0:
            return None
        script = script_tracking()
        own_tags = {tag_names.WORLD_SIZE: str(self.world_size), tag_names.VERSION: __version__}
        if script.run_id is not None and uri in (None, script.uri):
            own_tags[tag_names.PARENT] = script.run_id
        with tempfile.TemporaryDirectory() as folder:
            directory = self._write(Path(folder) / "run", shown="artifacts")
            with argument_errors():
                connection = connect(
                    uri=uri or script.uri,
                    experiment=experiment or script.experiment or DEFAULT_EXPERIMENT,
                    redactor=self._redactor,
                )
            all_tags = own_tags | dict(tags or {})
            run_id = create_run(connection, run_name=run_name or default_run_name(self.job), tags=all_tags)
            failure = self._upload(connection, run_id, directory.path, run_name=run_name)
        if failure is not None:
            raise ConnectionError(f"the range test is incomplete in MLflow: {failure.reason}")
        return run_id

    def _upload(
        self, connection: Connection, run_id: str, directory: Path, *, run_name: str | None
    ) -> UploadFailure | None:
        """Upload params, metrics, note and files, and end the MLflow run."""
        job = dataclasses.replace(self.job, tracking=dataclasses.replace(self.job.tracking, run_name=run_name))
        run = join_run(connection, run_id, job=job, params=self._content, tags={})
        for step in self.steps:
            run.log_step(step)
        for number, steps in enumerate(self.trial_steps):
            for step in steps:
                run.log_trial_step(number, step)
        for trial in self.trials:
            run.log_trial(trial, timestamp_ms=self.trial_steps[trial.trial][-1].timestamp_ms)
        note = (directory / NOTE_FILE).read_text(encoding="utf-8")
        return run.finish(
            RunEnd(state=RunState.FINISHED, note=note, directory=directory, test=self, figure=directory / FIGURE_FILE)
        )

    @property
    def _content(self) -> dict[str, Any]:
        """The call as a resolved configuration."""
        job = dataclasses.asdict(self.job)
        return {name: _plain(job[name]) for name in SECTIONS}

    @property
    def _redactor(self) -> Redactor:
        return Redactor.for_run(self._content, os.environ, [])

    def _write(self, path: Path, *, shown: str) -> RunDirectory:
        from lrrunner.reporting.sweep_figure import save_png

        with (
            argument_errors(),
            RunDirectory(path, self._redactor) as directory,
        ):
            directory.write_inputs(self._content, [])
            for step in self.steps:
                directory.record(step)
            for number, steps in enumerate(self.trial_steps):
                for step in steps:
                    directory.record_trial_step(number, step)
            for trial in self.trials:
                directory.record_trial(trial, schedule=self.training.schedule)
            directory.write_suggestion(self)
            save_png(self.plot(), directory.path / FIGURE_FILE)
            directory.write_note(run_summary.note(self, self.job, command=self.call, directory=shown))
            directory.update_status(
                state=RunState.FINISHED,
                mlflow_run_id=None,
                last_step=self.steps[-1].step,
                cause=None,
                **code_versions(),
                world_size=self.world_size,
                command=self.call,
            )
        return directory


def _plain(value: Any) -> Any:
    """The value with enumerations replaced by their values, at every depth."""
    if isinstance(value, Enum):
        return value.value
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
