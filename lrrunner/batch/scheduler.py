"""A batch: many jobs on few sets of warm ranks. One thread, no torch."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrrunner.batch import ledger
from lrrunner.batch.ledger import Entry
from lrrunner.batch.state import read_state, update_state
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.launch.rank_output import RankOutputFiles
from lrrunner.launch.worker_group import WorkerGroup
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import JobResult, RunState, state_in
from lrrunner.results.status_file import close_abandoned, read_status
from lrrunner.system import exit_codes
from lrrunner.system.interrupt_counter import InterruptCounter
from lrrunner.system.terminal import write_line
from lrrunner.tracking.supervised_run import SupervisedRun

POLL_S = 0.02
SETS_FOLDER = ".lrrunner-sets"
"""A name that is nobody else's: what a batch that was killed left in it is removed."""

SetKey = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One point of the grid.

    Attributes:
        number: Its place in the grid, from 0.
        label: The overrides that tell it from the other jobs.
        job: What is run.
        key: Its name in the ledger, see :func:`lrrunner.batch.state.job_key`.
    """

    number: int
    label: str
    job: Job
    key: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """As typed, secrets masked."""
        return tuple(self.job.redactor.text(word) for word in self.job.command_line.overrides)


@dataclass
class Slot:
    """A place for one set of ranks, with its own share of the machine."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    ranks: WorkerGroup | None = None
    set_key: SetKey | None = None
    running: Running | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job under way."""

    batch_job: BatchJob
    run_id: str | None
    output: RankOutputFiles
    started: float


@dataclass
class Batch:
    """Runs the jobs of a grid.

    Args:
        directory: The batch directory, which exists.
        slots: Where sets of ranks may live.
        tags: Further tags for the jobs' MLflow runs.
        show: Shows one line to the user.
    """

    directory: Path
    slots: list[Slot]
    tags: Mapping[str, str] = field(default_factory=dict)
    show: Callable[[str], None] = write_line
    keeper: SupervisedRun = field(default_factory=SupervisedRun)

    def __post_init__(self) -> None:
        self._done = 0
        self._total = 0

    def __enter__(self) -> Self:
        if read_state(self.directory):  # the directory is a batch of ours, and we hold its lock
            shutil.rmtree(self.directory / SETS_FOLDER, ignore_errors=True)  # it may hold secrets
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self.slots:
            if slot.ranks is not None:
                slot.ranks.close()
        with contextlib.suppress(OSError):
            (self.directory / SETS_FOLDER).rmdir()

    def warm_up(self, jobs: Sequence[BatchJob]) -> None:
        """Start the first sets, which load torch while Hydra and MLflow get ready."""
        for slot, item in zip(self.slots, self._pending(jobs), strict=False):
            self._provide_ranks(slot, item.job)

    def dismiss(self) -> None:
        """There is no further job: let the ranks end while the summary is drawn."""
        for slot in self.slots:
            if slot.ranks is not None:
                slot.ranks.dismiss()

    def run(self, jobs: Sequence[BatchJob], interrupts: InterruptCounter) -> None:
        """Run every job that the ledger does not know as finished.

        Args:
            jobs: The grid.
            interrupts: The first one ends what runs and starts nothing more, the second one ends at once.
        """
        pending = self._pending(jobs)
        self._total, self._done = len(jobs), len(jobs) - len(pending)
        passed_on = 0
        while pending or any(slot.running for slot in self.slots):
            if interrupts.count > passed_on:
                passed_on = interrupts.count
                pending.clear()
                self._interrupt(at_once=passed_on > 1, number=interrupts.signal or 15)
            for slot in self.slots:
                self._advance(slot, pending)
            time.sleep(POLL_S)

    def _pending(self, jobs: Sequence[BatchJob]) -> list[BatchJob]:
        """Jobs to run, those that can share a set side by side."""
        return sorted(self._unfinished(jobs), key=lambda item: str(set_key(item.job)))

    def _unfinished(self, jobs: Sequence[BatchJob]) -> list[BatchJob]:
        """Jobs to run; one whose run ended just before its line could be written gets its line now."""
        finished = {entry.key for entry in ledger.read(self.directory) if entry.state == RunState.FINISHED}
        attempts: dict[str, str] = read_state(self.directory).get("attempts", {})
        by_key = {job.key: job for job in jobs if job.key not in finished}
        for name, key in attempts.items():
            directory = self.directory / name
            if key in by_key and state_in(read_status(directory)) == RunState.FINISHED:
                run, item = read_run(directory), by_key.pop(key)
                result = JobResult(state=RunState.FINISHED, exit_code=exit_codes.OK)
                seconds = run.records.steps[-1].elapsed_s if run.records.steps else 0.0
                there = replace(item, job=item.job.in_directory(directory))
                entry = self._entry(there, result, run_id=run.status.get("mlflow_run_id"), seconds=seconds)
                ledger.append(self.directory, entry)
        return list(by_key.values())

    def _advance(self, slot: Slot, pending: list[BatchJob]) -> None:
        if slot.running is not None:
            assert slot.ranks is not None
            result = slot.ranks.poll()
            if result is not None:
                self._finish(slot.running, result)
                slot.running = None
        if slot.running is None and pending:
            wanted = (item for item in pending if set_key(item.job) == slot.set_key)
            chosen = next(wanted, pending[0])
            pending.remove(chosen)
            self._start(slot, chosen)

    def _start(self, slot: Slot, item: BatchJob) -> None:
        item = replace(item, job=_in_free_directory(item.job))
        job = item.job
        attempts = read_state(self.directory).get("attempts", {})
        update_state(self.directory, attempts=attempts | {job.directory.name: item.key})
        self._provide_ranks(slot, job)
        assert slot.ranks is not None
        tags = {**self.tags, "lrrunner.job": str(item.number)}
        try:
            run_id = self.keeper.open(job.config.tracking, job.directory, redactor=job.redactor, tags=tags)
        except ConfigError as error:
            result = JobResult(state=RunState.FAILED, exit_code=exit_codes.CONFIG_ERROR, cause="; ".join(error.errors))
            self._record(item, result, run_id=None, seconds=0.0)
            return
        output = RankOutputFiles(job.directory, job.redactor)
        slot.running = Running(batch_job=item, run_id=run_id, output=output, started=time.monotonic())
        order = job.message(slot.ranks.next_number, run_id=run_id)
        slot.ranks.start_job(order, timeout_s=job.timeout_s)

    def _provide_ranks(self, slot: Slot, job: Job) -> None:
        """The slot's own set where it fits and lives, else a new one."""
        key = set_key(job)
        if slot.ranks is not None and (not slot.ranks.is_alive or slot.set_key != key):
            slot.ranks.close()
            slot.ranks = None
        if slot.ranks is None:
            folder = self.directory / SETS_FOLDER / secrets.token_hex(4)
            plan = job.plan(gpus=slot.gpus, cores=slot.cores)
            slot.ranks = WorkerGroup(plan, folder, environ=os.environ, sink=lambda *words: _hear(slot, *words))
            slot.set_key = key

    def _finish(self, running: Running, result: JobResult) -> None:
        """Files, MLflow, ledger, and a line for the user."""
        item, job = running.batch_job, running.batch_job.job
        seconds = time.monotonic() - running.started
        running.output.flush()
        result = replace(result, cause=_one_line(result.cause))
        run_id = self.keeper.close(
            job.config.tracking, job.directory, result, run_id=running.run_id, redactor=job.redactor
        )
        self._record(item, result, run_id=run_id, seconds=seconds)

    def _record(self, item: BatchJob, result: JobResult, *, run_id: str | None, seconds: float) -> None:
        entry = self._entry(item, result, run_id=run_id, seconds=seconds)
        ledger.append(self.directory, entry)
        self._done += 1
        label = item.job.redactor.text(item.label)
        self.show(f"[{self._done}/{self._total}] {label}   {describe_outcome(entry)}")

    def _entry(self, item: BatchJob, result: JobResult, *, run_id: str | None, seconds: float) -> Entry:
        directory, cause = item.job.directory, result.cause
        run = read_run(directory)
        suggestion = run.test.suggestion if run.test and result.state == RunState.FINISHED else None
        return Entry(
            job=item.number,
            overrides=item.overrides,
            key=item.key,
            state=result.state,
            run_id=run_id,
            run_dir=os.path.relpath(directory, self.directory) if run.status else None,
            lr=suggestion.lr if suggestion else None,
            interval=suggestion.interval if suggestion else None,
            verdict=str(suggestion.verdict) if suggestion else None,
            best_loss=run.best_loss,
            seconds=round(seconds, 3),
            cause=item.job.redactor.text(cause) if cause else None,
        )

    def _interrupt(self, *, at_once: bool, number: int) -> None:
        for slot in self.slots:
            if slot.running is not None and slot.ranks is not None:
                if at_once:
                    slot.ranks.kill()
                slot.ranks.interrupt(number)


def set_key(job: Job) -> SetKey:
    """What jobs must share to share a set of warm ranks: world size, precision, compiler, launcher's file."""
    train = job.config.train
    precision = train.mixed_precision and train.mixed_precision.value
    return (job.num_processes, precision, train.compile, job.config.launch.config_file)


def describe_outcome(entry: Entry) -> str:
    """How a job ended, in one line."""
    if entry.state != RunState.FINISHED:
        return f"{entry.state}: {entry.cause}"
    if entry.lr is None or entry.interval is None:
        return f"lr none   {entry.verdict}   {entry.seconds:.1f} s"
    low, high = entry.interval
    return f"lr {entry.lr:.1e}   [{low:.1e}, {high:.1e}]   {entry.verdict}   {entry.seconds:.1f} s"


def new_slots(count: int, *, num_processes: int, gpus: tuple[str, ...], cores: tuple[int, ...]) -> list[Slot]:
    """Share the machine among sets: each has its own GPUs or, where there are none, its own cores."""
    if gpus:
        return [Slot(gpus[i * num_processes : (i + 1) * num_processes], ()) for i in range(count)]
    if count == 1 or len(cores) < count:
        return [Slot((), ()) for _ in range(count)]
    share = len(cores) // count
    return [Slot((), cores[i * share : (i + 1) * share]) for i in range(count)]


def _in_free_directory(job: Job) -> Job:
    """The job, in a directory that holds no run: an earlier attempt's stays as it is, closed."""
    directory, attempt = job.directory, 1
    while directory.exists() and any(directory.iterdir()):
        close_abandoned(directory)
        attempt += 1
        directory = job.directory.with_name(f"{job.directory.name}-{attempt}")
    return job.in_directory(directory)


def _hear(slot: Slot, rank: int, name: str, lines: Sequence[str]) -> None:
    if slot.running is not None:
        slot.running.output.write(rank, name, lines)


def _one_line(cause: str | None) -> str | None:
    """A message of several mistakes as one line."""
    if cause is None or "\n" not in cause:
        return cause
    with contextlib.suppress(ValueError):
        _, *mistakes = [line.strip().removeprefix("- ") for line in cause.splitlines() if line.strip()]
        return "; ".join(mistakes)
    return cause
