"""What rank 0 knows of a run before its first step, and where it records the run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.reporting.progress_display import NoDisplay, ProgressDisplay
from lrrunner.results.codec import optional_step_columns
from lrrunner.results.resume_checks import differences, directory_errors
from lrrunner.results.writer import RunDirectory, new_run_path
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.plain_values import to_plain
from lrrunner.tracking.store.connection import anchored_uri


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every record of a run is made with.

    Attributes:
        job: Its configuration, as the ranks agreed on it.
        command: The command that repeats it.
        world_size: Number of ranks.
        redactor: Masks secrets in everything shown and written.
        display: Where progress is shown.
    """

    job: Config
    command: str
    world_size: int
    redactor: Redactor
    display: ProgressDisplay = field(default_factory=NoDisplay)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration as plain values; the path of a SQLite database is absolute, for readers elsewhere."""
        tracking = dataclasses.replace(self.job.tracking, uri=anchored_uri(self.job.tracking.uri))
        plain: dict[str, Any] = to_plain(dataclasses.replace(self.job, tracking=tracking))
        return plain


def open_run_directory(context: RunContext) -> RunDirectory:
    """A new run directory, or that of the run to resume.

    Raises:
        ConfigError: it cannot be used, or the run in it cannot be resumed with this configuration.
    """
    run, columns = context.job.run, optional_step_columns(context.job.sweep)
    if run.resume is None:
        path = Path(run.dir) if run.dir else new_run_path()
        return RunDirectory(path, context.redactor, optional_columns=columns)
    path = Path(run.resume).expanduser()
    errors = directory_errors(run) or differences(
        path, context.redactor.tree(context.values), world_size=context.world_size
    )
    if errors:
        raise ConfigError(errors)
    return RunDirectory(path, context.redactor, optional_columns=columns, resumed=True)
