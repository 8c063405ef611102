"""One job as the parent knows it. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrrunner.config.command_line import CommandLine
from lrrunner.config.schema import Config
from lrrunner.launch.mailbox import JobMessage
from lrrunner.launch.rank_command import RankPlan
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.plain_values import to_plain


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has passed stage A.

    Attributes:
        config: Its configuration; ``run.dir`` is its directory.
        command_line: Its arguments, without the overrides that concern a whole batch.
        redactor: Masks its secrets.
    """

    config: Config
    command_line: CommandLine
    redactor: Redactor = field(init=False)

    def __post_init__(self) -> None:
        redactor = Redactor.for_run(to_plain(self.config), os.environ, self.command_line.overrides)
        object.__setattr__(self, "redactor", redactor)

    @property
    def directory(self) -> Path:
        """Its run directory."""
        assert self.config.run.dir is not None
        return Path(self.config.run.dir)

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on with a run that was interrupted."""
        return self.config.run.resume is not None

    @property
    def num_processes(self) -> int:
        """Number of its ranks."""
        return self.config.launch.num_processes or 1

    @property
    def timeout_s(self) -> float:
        """Longest time without a heartbeat of its ranks."""
        return self.config.launch.timeout_s

    def in_directory(self, directory: Path) -> Job:
        """The same job in another run directory."""
        return replace(self, config=replace(self.config, run=replace(self.config.run, dir=str(directory))))

    def message(self, number: int, *, run_id: str | None) -> JobMessage:
        """The job as its ranks receive it."""
        return JobMessage(
            number=number,
            config=to_plain(self.config),
            arguments=self.command_line.arguments,
            run_id=run_id,
        )

    def plan(self, *, gpus: tuple[str, ...], cores: tuple[int, ...] = ()) -> RankPlan:
        """The worker group that it needs, on these GPUs or cores."""
        return RankPlan(
            num_processes=self.num_processes,
            gpus=gpus[: self.num_processes],
            cores=cores,
            config_file=self.config.launch.config_file,
        )
