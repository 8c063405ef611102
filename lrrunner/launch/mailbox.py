"""The folder through which a supervisor and its warm ranks talk: jobs in, signs of life and outcomes out.

Plain files, each written whole, so that it works across nodes and a rank that waits holds no pending collective.
Standard library only. Jobs may hold secrets: they are readable by their owner alone and removed once all ranks have
read them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lrrunner.system.atomic_files import read_json, write_json
from lrrunner.system.process_identity import is_alive, process_identity

RANK_POLL_S = 0.02
HEARTBEAT_INTERVAL_S = 0.5
"""At most this often does a step cost a file."""

IDLE = -1
OWNER_FILE = "owner.json"

ANOTHER_RANK_IS_GONE = "another rank is gone"
ANOTHER_RANK_IS_SILENT = "another rank does not answer"
SECOND_HAND = (ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT)
"""How a rank reports a failure whose cause is elsewhere."""


@dataclass(frozen=True, kw_only=True)
class JobMessage:
    """One job as a supervisor hands it to ranks.

    Attributes:
        number: Counts the jobs of one set of ranks.
        config: Configuration that passed stage A, as plain values.
        arguments: Command line that repeats the job.
        run_id: MLflow run that the supervisor has made; None: there is none, and rank 0 is not to try either.
    """

    number: int
    config: dict[str, Any]
    arguments: list[str] = field(default_factory=list)
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """How a job ended on one rank.

    Attributes:
        rank: Which rank.
        code: Exit code of the job.
        cause: What some rank was the first to report, after a failure; the message, after a mistake.
    """

    rank: int
    code: int
    cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A rank's sign of life.

    Attributes:
        identity: Of its process.
        job: Number of the job it works on, -1 while it waits for one.
        step: Last step it has finished, -1 before the first.
        count: Counts its signs of life.
    """

    identity: str
    job: int = IDLE
    step: int = -1
    count: int = 0


def sweep(folders: Iterable[Path]) -> None:
    """Remove the folders whose supervisor, on this machine, is dead: jobs in them may hold secrets."""
    for folder in folders:
        owner = read_json(folder / OWNER_FILE) or {}
        if owner.get("host") == socket.gethostname() and not is_alive(owner.get("process", "elsewhere:::")):
            shutil.rmtree(folder, ignore_errors=True)


def remove_folder_when_orphaned(folder: Path, orphaned: Callable[[], bool]) -> None:
    """On SIGTERM, which the kernel sends when the supervisor dies, remove its folder; then end as if this were not."""

    def end(number: int, frame: FrameType | None) -> None:
        if orphaned():
            JobMailbox(folder).remove()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


class JobMailbox:
    """The folder.

    Args:
        folder: Where; made by :meth:`create`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """A fresh folder, for its owner alone: outcomes of earlier ranks would be taken for those of these.

        Raises:
            FileExistsError: another set of ranks has used it.
        """
        for name in ("jobs", "beats", "outcomes"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o700)
        write_json(
            self.folder / OWNER_FILE, {"process": process_identity(), "host": socket.gethostname()}, private=True
        )

    def remove(self) -> None:
        """Nothing is left; jobs go first."""
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def give(self, order: JobMessage) -> None:
        """Hand a job to the ranks."""
        write_json(self._job(order.number), asdict(order), private=True)

    def withdraw(self, number: int) -> None:
        """Remove a job that every rank has read."""
        self._job(number).unlink(missing_ok=True)

    def stop(self) -> None:
        """Tell ranks that there is no further job."""
        (self.folder / "stop").touch()

    def next_job(self, number: int, *, orphaned: Callable[[], bool]) -> JobMessage | None:
        """Wait for a job, on a rank.

        Returns:
            The job, or None when there is none to come.
        """
        checked = time.monotonic()
        while not (self.folder / "stop").exists():
            content = read_json(self._job(number))
            if content is not None:
                return JobMessage(**content)
            if time.monotonic() - checked > HEARTBEAT_INTERVAL_S:
                checked = time.monotonic()
                if orphaned():
                    return None
            time.sleep(RANK_POLL_S)
        return None

    def report(self, number: int, outcome: RankOutcome) -> None:
        """How a job ended on this rank."""
        write_json(self.folder / "outcomes" / f"{number}.{outcome.rank}.json", asdict(outcome), private=True)

    def outcomes(self, number: int) -> list[RankOutcome]:
        """How a job ended on the ranks that have reported so far, in the order of their reports."""
        found = sorted((self.folder / "outcomes").glob(f"{number}.*.json"), key=_modified)
        contents = [read_json(path) for path in found]
        return [RankOutcome(**content) for content in contents if content is not None]

    def beat(self, rank: int, beat: Heartbeat) -> None:
        """Leave a sign of life."""
        write_json(self.folder / "beats" / f"{rank}.json", asdict(beat), private=True)

    def beats(self, world_size: int) -> dict[int, Heartbeat]:
        """The last sign of life of each rank that has left one."""
        found = {rank: read_json(self.folder / "beats" / f"{rank}.json") for rank in range(world_size)}
        return {rank: Heartbeat(**content) for rank, content in found.items() if content is not None}

    def _job(self, number: int) -> Path:
        return self.folder / "jobs" / f"{number}.json"


class HeartbeatWriter:
    """A rank's signs of life: at each change of what it does, and with steps at most twice a second."""

    def __init__(self, handover: JobMailbox, rank: int) -> None:
        self._handover, self._rank = handover, rank
        self._identity = process_identity()
        self._count = 0
        self._last = 0.0

    def change(self, *, job: int, step: int = -1) -> None:
        """Something new begins."""
        self._count += 1
        self._last = time.monotonic()
        beat = Heartbeat(identity=self._identity, job=job, step=step, count=self._count)
        with contextlib.suppress(
            OSError
        ):  # a supervisor that is gone has removed the folder; the rank learns elsewhere
            self._handover.beat(self._rank, beat)

    def step(self, job: int, step: int) -> None:
        """A step is over."""
        if time.monotonic() - self._last > HEARTBEAT_INTERVAL_S:
            self.change(job=job, step=step)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
