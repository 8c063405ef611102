"""The mailbox of a worker group: a folder with jobs for its ranks, and with their heartbeats and outcomes.

Plain files, each written whole: it works across nodes, and a rank that waits holds no pending collective. Standard
library only. Jobs may hold secrets: only their owner can read them, and they are removed once all ranks have read them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lrrunner.records import Progress
from lrrunner.system.atomic_files import read_json, write_json
from lrrunner.system.environment import MAILBOX_VARIABLE, OUTPUT_VARIABLE
from lrrunner.system.processes.process_identity import process_identity
from lrrunner.system.temporary_folders import remove_private_folder, write_owner

RANK_POLL_S = 0.02
HEARTBEAT_INTERVAL_S = 0.5
"""Shortest time between two heartbeats of one job's steps: each is a file."""

NO_JOB = -1

ANOTHER_RANK_IS_GONE = "another rank is gone"
ANOTHER_RANK_IS_SILENT = "another rank does not answer"
WORKER_WAS_ENDED = "a worker of the data loader was ended from outside"
SECONDARY_CAUSES = (ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT, WORKER_WAS_ENDED)
"""How a rank reports a failure whose cause is on another rank, or the launcher's end of all ranks."""


@dataclass(frozen=True, kw_only=True)
class JobMessage:
    """One job for the ranks of a worker group.

    Attributes:
        number: Number of the job within its worker group, from 0.
        config: Configuration that passed stage A, as plain values.
        arguments: Command line that repeats the job.
        run_id: MLflow run made by the supervisor; None: there is none, and rank 0 must not make one either.
    """

    number: int
    config: dict[str, Any]
    arguments: list[str] = field(default_factory=list)
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """How a job ended on one rank.

    Attributes:
        rank: The rank.
        exit_code: Exit code of the job.
        cause: After a failure the cause that some rank was the first to report; the message of a configuration error.
    """

    rank: int
    exit_code: int
    cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Proof that a rank is alive.

    Attributes:
        identity: Identity of its process.
        job: Number of the job it runs, -1 while it waits for one.
        step: Last step it has finished, -1 before the first.
        count: Number of heartbeats so far.
        progress: Where the job is, if this rank shows it.
        world_size: Number of ranks that its launcher has started.
    """

    identity: str
    job: int = NO_JOB
    step: int = -1
    count: int = 0
    progress: Progress | None = None
    world_size: int = 1


class JobMailbox:
    """The folder, as supervisor and ranks see it.

    Args:
        folder: Made by :meth:`create`.
        output: Folder of the ranks' pipes, which is removed with the mailbox; None: somebody else removes it.
    """

    def __init__(self, folder: Path, *, output: Path | None = None) -> None:
        self.folder = folder
        self._output = output

    @classmethod
    def of_this_rank(cls) -> JobMailbox:
        """The mailbox in which this rank, or the launcher of its group, finds its jobs."""
        output = os.environ.get(OUTPUT_VARIABLE)
        return cls(Path(os.environ[MAILBOX_VARIABLE]), output=None if output is None else Path(output))

    def create(self) -> None:
        """Make a new folder that only its owner can read.

        Raises:
            FileExistsError: another worker group has used it; its outcomes would be taken for those of this one.
        """
        for name in ("jobs", "heartbeats", "outcomes"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o700)
        write_owner(self.folder)

    def remove(self) -> None:
        """Remove the folder, jobs first."""
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        for folder in filter(None, (self.folder, self._output)):
            remove_private_folder(folder)

    def post(self, message: JobMessage) -> None:
        """Leave a job for the ranks."""
        write_json(self._job_file(message.number), asdict(message), private=True)

    def withdraw(self, number: int) -> None:
        """Remove a job that every rank has read."""
        self._job_file(number).unlink(missing_ok=True)

    def post_end(self) -> None:
        """Let the ranks know that there is no further job."""
        (self.folder / "end").touch()

    def next_job(self, number: int, *, orphaned: Callable[[], bool]) -> JobMessage | None:
        """Wait for a job, on a rank.

        Args:
            number: Number of the job.
            orphaned: Whether the supervisor is gone.

        Returns:
            The job; None when there is no further one.
        """
        checked_at = time.monotonic()
        while not (self.folder / "end").exists():
            content = read_json(self._job_file(number))
            if content is not None:
                return JobMessage(**content)
            if time.monotonic() - checked_at > HEARTBEAT_INTERVAL_S:
                checked_at = time.monotonic()
                if orphaned():
                    return None
            time.sleep(RANK_POLL_S)
        return None

    def write_outcome(self, number: int, outcome: RankOutcome) -> None:
        """Report how a job ended on this rank."""
        write_json(self.folder / "outcomes" / f"{number}.{outcome.rank}.json", asdict(outcome), private=True)

    def outcomes(self, number: int) -> list[RankOutcome]:
        """How a job ended on the ranks that have reported so far, in the order of their reports."""
        found = sorted((self.folder / "outcomes").glob(f"{number}.*.json"), key=_modified)
        contents = [read_json(path) for path in found]
        return [RankOutcome(**content) for content in contents if content is not None]

    def write_heartbeat(self, rank: int, heartbeat: Heartbeat) -> None:
        """Replace the heartbeat of a rank; where no file can be written, the old one gets a new time instead."""
        path = self._heartbeat_file(rank)
        try:
            write_json(path, asdict(heartbeat), private=True)
        except OSError:  # the disk is full
            os.utime(path)

    def heartbeats(self, world_size: int) -> dict[int, Heartbeat]:
        """The last heartbeat of each rank that has written one."""
        found = {rank: read_json(self._heartbeat_file(rank)) for rank in range(world_size)}
        return {rank: _heartbeat(content) for rank, content in found.items() if content is not None}

    def heartbeat_stamps(self, world_size: int) -> dict[int, tuple[int, int]]:
        """For each rank that has written a heartbeat, what differs from one heartbeat to the next."""
        found = {}
        for rank in range(world_size):
            with contextlib.suppress(OSError):
                stat = self._heartbeat_file(rank).stat()
                found[rank] = stat.st_ino, stat.st_mtime_ns
        return found

    def _heartbeat_file(self, rank: int) -> Path:
        return self.folder / "heartbeats" / f"{rank}.json"

    def _job_file(self, number: int) -> Path:
        return self.folder / "jobs" / f"{number}.json"


class HeartbeatWriter:
    """Writes a rank's heartbeats: one at each start and end of a job, and at most two a second for its steps."""

    def __init__(self, mailbox: JobMailbox, rank: int) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._identity = process_identity()
        world_size = os.environ.get("WORLD_SIZE", "")
        self._world_size = int(world_size) if world_size.isdecimal() else 1
        self._count = 0
        self._written_at = 0.0
        self._job, self._step = NO_JOB, -1
        self._progress: Progress | None = None

    def show_progress(self, progress: Progress | None) -> None:
        """Send this with the next heartbeats; its end at once, since the result is printed next."""
        is_over = progress is None and self._progress is not None
        self._progress = progress
        if is_over:
            self.job_changed(self._job, step=self._step)

    def job_changed(self, job: int, *, step: int = -1) -> None:
        """Write that a job begins, or that this rank waits for one."""
        self._count += 1
        self._job, self._step = job, step
        self._written_at = time.monotonic()
        heartbeat = Heartbeat(
            identity=self._identity,
            job=job,
            step=step,
            count=self._count,
            progress=self._progress,
            world_size=self._world_size,
        )
        with contextlib.suppress(OSError):  # a supervisor that is gone has removed the folder
            self._mailbox.write_heartbeat(self._rank, heartbeat)

    def step_done(self, job: int, step: int) -> None:
        """Write that a step is over, unless the last heartbeat is recent."""
        if time.monotonic() - self._written_at > HEARTBEAT_INTERVAL_S:
            self.job_changed(job, step=step)


def remove_mailbox_when_orphaned(mailbox: JobMailbox, orphaned: Callable[[], bool]) -> None:
    """Install a handler of SIGTERM, which the kernel sends when the supervisor dies: remove its mailbox, then end."""

    def end(number: int, frame: FrameType | None) -> None:
        if orphaned():
            mailbox.remove()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


def _heartbeat(content: dict[str, Any]) -> Heartbeat:
    progress = content.pop("progress", None)
    return Heartbeat(**content, progress=None if progress is None else Progress(**progress))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
