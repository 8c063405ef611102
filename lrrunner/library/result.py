"""What a range test gives back to the script that called it: figures, picture, files, an MLflow run."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrrunner.config.schema import Config, batch_summary
from lrrunner.errors import ArgumentError, ConfigError
from lrrunner.records import RangeTestResult, Step
from lrrunner.reporting import run_summary
from lrrunner.results.artifacts import FIGURE, artifacts
from lrrunner.results.codec import STEP_COLUMNS
from lrrunner.results.resume_checks import code_versions
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.system.plain_values import field_types
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.metric_names import MetricPoint, final_points, live_prefix, step_point, superseded
from lrrunner.tracking.mlflow_run import MlflowRun, script_tracking
from lrrunner.training.learning_rate import LearningRate
from lrrunner.training.optimizers import unwrapped
from lrrunner.version import __version__

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

SECTIONS = ("model", "data", "objective", "optimizer", "sweep", "suggestion", "train")
"""What a call has of a configuration."""


DTYPES: dict[type, type[np.generic]] = {int: np.int64, float: np.float64, bool: np.bool_}


class Records(Mapping[str, npt.NDArray[Any]]):
    """One row a step, as columns: name -> array of shape (T,).

    The columns are those of ``records.csv``: ``loss`` is the reduced loss in the unit of the loss function,
    ``elapsed_s`` is in seconds, ``timestamp_ms`` in milliseconds since 1970.

    Args:
        steps: Records of all passes and repeats, in order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        types = field_types(Step)
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.array([getattr(step, name) for step in steps], dtype=DTYPES[types[name]]) for name in STEP_COLUMNS
        }

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Records({len(self['step'])} steps: {', '.join(self)})"

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        import pandas as pd

        return pd.DataFrame(self._columns)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RangeTest(RangeTestResult):
    """A range test on objects of the caller's own. Every rank holds the same one.

    Attributes:
        job: The call as a configuration.
        call: The call as Python.
        rank: The rank that holds it: only rank 0 writes.
    """

    job: Config
    call: str
    rank: int = 0

    def __repr__(self) -> str:
        return f"RangeTest({self.suggestion}   ({batch_summary(self.job, world_size=self.world_size)}))"

    @property
    def records(self) -> Records:
        """The records of every step, as arrays."""
        return Records(self.steps)

    def plot(self) -> Figure:
        """The curve, the suggested LR with its interval, every rule's LR, and where the sweep stopped."""
        from lrrunner.reporting.sweep_figure import job_figure

        return job_figure(self, self.job)

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Train with the suggested LR: set it on an optimizer, keeping the ratios between its groups.

        Nothing else that lrrunner does changes an optimizer. A scheduler keeps the LRs it was made with: make it
        afterwards.

        Args:
            optimizer: Prepared by Accelerate or not.

        Raises:
            ValueError: the curve supports no LR.
        """
        suggestion = self.suggestion
        if suggestion.lr is None:
            raise ValueError(
                f"suggestion.lr must be a number to be applied, got none (verdict {suggestion.verdict}: "
                f"{suggestion.reason}); test its value before"
            )
        LearningRate(unwrapped(optimizer)).apply(suggestion.lr)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the run directory that the command line would have left. Rank 0 does, the others do nothing.

        Args:
            directory: A new or an empty one.

        Returns:
            The directory.

        Raises:
            ValueError: it cannot be written, or holds a run already.
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
        """Log it as an MLflow run of its own, below the script's active run if there is one. Rank 0 does.

        Args:
            uri: Tracking URI; None is the one that the script uses.
            experiment: Name of the experiment; None is that of the script, or ``lrrunner``.
            run_name: Shown name.
            tags: Further tags.

        Returns:
            The run's id; None on other ranks.

        Raises:
            ValueError: the store cannot be used.
            ConnectionError: it does not answer.
        """
        if self.rank != 0:
            return None
        script = script_tracking()
        is_below = script.run_id is not None and uri in (None, script.uri)
        with tempfile.TemporaryDirectory() as folder:
            directory = self._write(Path(folder) / "run", shown="artifacts")
            with _argument_errors({"tracking.uri": "uri", "tracking.experiment": "experiment"}):
                run = MlflowRun(
                    uri=uri or script.uri,
                    experiment=experiment or script.experiment or self.job.tracking.experiment,
                    redactor=self._redactor,
                )
            own = {"lrrunner.world_size": str(self.world_size), "lrrunner.version": __version__}
            own |= {"mlflow.parentRunId": str(script.run_id)} if is_below else {}
            run.start(run_name=run_name or "lr range test", params=self._content, tags=own | dict(tags or {}))
            run.finish(
                status=RunState.FINISHED.mlflow_status,
                test=self,
                final=list(self._points()),
                note=run_summary.with_picture(
                    (directory.path / "note.md").read_text(encoding="utf-8"), run_id=run.run_id
                ),
                files=artifacts(directory.path),
                root=directory.path,
                picture=directory.path / FIGURE,
            )
        if run.error:
            raise ConnectionError(f"the range test is not whole in MLflow: {run.error}")
        return run.run_id

    @property
    def _content(self) -> dict[str, Any]:
        """The call as a resolved configuration."""
        job = dataclasses.asdict(self.job)
        return {name: _plain(job[name]) for name in SECTIONS}

    @property
    def _redactor(self) -> Redactor:
        return Redactor.for_run(self._content, os.environ, [])

    def _points(self) -> Iterator[MetricPoint]:
        is_superseded = superseded(self)
        for step in self.steps:
            if not is_superseded(prefix := live_prefix(step, self.job.sweep)):
                yield step_point(step, prefix)
        yield from final_points(self, self.job.sweep)

    def _write(self, path: Path, *, shown: str) -> RunDirectory:
        from lrrunner.reporting.sweep_figure import save_png

        with (
            _argument_errors({"run.dir": "directory"}),
            RunDirectory(path, self._redactor) as directory,
        ):
            directory.write_inputs(self._content, [])
            for step in self.steps:
                directory.record(step)
            directory.write_suggestion(self)
            save_png(self.plot(), directory.path / FIGURE)
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


@contextmanager
def _argument_errors(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of the configuration, told in the names of a call's arguments."""
    try:
        yield
    except ConfigError as error:
        raise ArgumentError(in_python(message, names) for message in error.errors) from None


def in_python(message: str, names: Mapping[str, str]) -> str:
    """A message about the configuration for somebody who has written no YAML.

    >>> in_python("train.max_grad_norm must be above 0, got -1; null turns clipping off", {"train.": ""})
    'max_grad_norm must be above 0, got -1; None turns clipping off'
    """
    for name, own in names.items():
        message = message.replace(name, own)
    return re.sub(r"\bnull\b", "None", message)


def _plain(value: Any) -> Any:
    """Enumerations by their values, throughout."""
    if isinstance(value, Enum):
        return value.value
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
