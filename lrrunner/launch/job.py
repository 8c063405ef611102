"""One job on a set of ranks, from the supervisor's side: its order, its output, its end. No torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrrunner.config.command_line import CommandLine
from lrrunner.config.schema import Config
from lrrunner.config.serialization import to_plain
from lrrunner.launch.mailbox import JobMessage
from lrrunner.launch.rank_command import RankPlan
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import write_line

MAX_EARLY_LINES = 1000
MAX_FILE = 1 << 24
"""Characters of one rank's file; what a rank says beyond them is left out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has passed stage A.

    Attributes:
        config: Its configuration; ``run.dir`` is its directory.
        command_line: Its arguments, without the overrides that concern a whole batch.
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
        """The ranks that it wants, on these GPUs or cores."""
        return RankPlan(
            num_processes=self.num_processes,
            gpus=gpus[: self.num_processes],
            cores=cores,
            config_file=self.config.launch.config_file,
        )


class OutputFiles:
    """What ranks say, secrets masked, in ``ranks/<rank>.out`` of the run directory of the job they are at.

    Args:
        directory: Run directory; lines wait until rank 0 has made it.
        redactor: Masks secrets.
        echo: Given what rank 0 prints, with "out" or "err", instead of a file.
    """

    def __init__(self, directory: Path, redactor: Redactor, *, echo: Callable[[str, str], None] | None = None) -> None:
        self._folder = directory / "ranks"
        self._redactor, self._echo = redactor, echo
        self._waiting: dict[int, list[str]] = {}
        self._sizes: dict[int, int] = {}

    def take(self, rank: int, name: str, lines: Sequence[str]) -> None:
        """Take in some lines."""
        if rank == 0 and self._echo is not None and name != "stack":
            self._echo(name, "".join(map(self._redactor.text, lines)))
        else:
            waiting = self._waiting.setdefault(rank, [])
            if not self._folder.is_dir():
                lines = lines[: MAX_EARLY_LINES - len(waiting)]
            waiting += self._fitting(rank, lines)
        self.flush()

    def flush(self) -> None:
        """Write what has waited for the directory."""
        if not any(self._waiting.values()) or not self._folder.is_dir():
            return
        with contextlib.suppress(OSError):
            for rank, lines in self._waiting.items():
                with (self._folder / f"{rank}.out").open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
        self._waiting.clear()

    def _fitting(self, rank: int, lines: Sequence[str]) -> list[str]:
        """As many lines as the file takes, secrets masked, and a word about the first that it does not."""
        fitting = []
        for line in lines:
            size = self._sizes.get(rank, 0)
            if size > MAX_FILE:
                break
            self._sizes[rank] = size + len(line)
            fitting.append(self._redactor.text(line) if size + len(line) <= MAX_FILE else "[the rest is left out]\n")
        return fitting


def echo(name: str, text: str) -> None:
    """Rank 0 speaks to the user."""
    write_line(text, sys.stdout if name == "out" else sys.stderr, end="")
