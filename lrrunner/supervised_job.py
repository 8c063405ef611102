"""One job on a set of ranks, from the supervisor's side: its order, its output, its end. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrrunner.handover import JobOrder
from lrrunner.launch import RankPlan
from lrrunner.redaction import Redactor
from lrrunner.run_keeper import environment_redactor

MAX_EARLY_LINES = 1000


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

    def order(self, number: int, *, run_id: str | None, tags: Mapping[str, str] | None = None) -> JobOrder:
        """What its ranks are told."""
        return JobOrder(
            number=number,
            container=dict(self.container),
            overrides=list(self.overrides),
            options=list(self.options),
            run_id=run_id,
            tags=dict(tags or {}),
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
        self._early: list[tuple[int, str]] = []

    def take(self, rank: int, name: str, line: str) -> None:
        """Take in one line."""
        line = self._redactor.text(line)
        if rank == 0 and self._echo is not None and name != "stack":
            self._echo(name, line)
        elif len(self._early) < MAX_EARLY_LINES:
            self._early.append((rank, line))
        self.flush()

    def flush(self) -> None:
        """Write what has waited for the directory."""
        if not self._early or not self._folder.is_dir():
            return
        with contextlib.suppress(OSError):
            for rank, line in self._early:
                with (self._folder / f"{rank}.out").open("a", encoding="utf-8") as file:
                    file.write(line)
        self._early.clear()


def echo(name: str, line: str) -> None:
    """Rank 0 speaks to the user."""
    stream = sys.stdout if name == "out" else sys.stderr
    with contextlib.suppress(BrokenPipeError):
        stream.write(line)
        stream.flush()
