"""One job on a set of ranks, from the supervisor's side: its order, its output, its end. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrrunner.launch.mailbox import JobMessage
from lrrunner.launch.rank_command import RankPlan
from lrrunner.system.redaction import Redactor
from lrrunner.system.terminal import write_line
from lrrunner.tracking.supervised_run import environment_redactor

MAX_EARLY_LINES = 1000
MAX_FILE = 1 << 24
"""Characters of one rank's file; what a rank says beyond them is left out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has passed stage A.

    Attributes:
        container: Its resolved configuration; ``run.dir`` is its directory.
        overrides: As typed, without those that concern a whole batch.
        options: Hydra's own flags as typed.
    """

    container: Mapping[str, Any]
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()
    redactor: Redactor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "redactor", environment_redactor(self.container, self.overrides))

    @property
    def directory(self) -> Path:
        """Its run directory."""
        return Path(self.container["run"]["dir"])

    @property
    def num_processes(self) -> int:
        """Ranks that it wants."""
        return int(self.container["launch"]["num_processes"] or 1)

    @property
    def timeout_s(self) -> float:
        """How long its ranks may show no sign of life."""
        return float(self.container["launch"]["timeout_s"])

    def order(self, number: int, *, run_id: str | None) -> JobMessage:
        """What its ranks are told."""
        return JobMessage(
            number=number,
            container=dict(self.container),
            overrides=list(self.overrides),
            options=list(self.options),
            run_id=run_id,
        )

    def plan(self, *, gpus: tuple[str, ...], cores: tuple[int, ...] = ()) -> RankPlan:
        """The ranks that it wants, on these GPUs or cores."""
        return RankPlan(
            num_processes=self.num_processes,
            gpus=gpus[: self.num_processes],
            cores=cores,
            config_file=self.container["launch"]["config_file"],
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
