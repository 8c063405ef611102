"""Runs the jobs of a batch on a few warm worker groups. One thread, no torch."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrrunner.batch import ledger
from lrrunner.batch.collect import entry_from_run
from lrrunner.batch.points import BatchJob
from lrrunner.batch.progress import BatchProgress, JobProgress
from lrrunner.batch.state import read_state, update_state
from lrrunner.batch.summary.summary_table import describe_outcome
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.launch.rank_output import RankOutputFiles
from lrrunner.launch.worker_group import WorkerGroup
from lrrunner.results.run_state import JobResult, RunState, state_in
from lrrunner.results.status_file import as_recorded, close_abandoned, read_status
from lrrunner.system import exit_codes
from lrrunner.system.processes.interrupt_counter import InterruptCounter
from lrrunner.system.temporary_folders import remove_stale_folders
from lrrunner.tracking.names import tag_names
from lrrunner.tracking.supervised_run import SupervisedRuns

POLL_S = 0.02
GROUPS_FOLDER = ".lrrunner-sets"
"""Mailboxes of the worker groups. What a batch that was killed left in it is removed: it may hold secrets."""

GroupKey = tuple[Any, ...]


@dataclass
class Slot:
    """A place for one worker group, with its own share of the machine."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    workers: WorkerGroup | None = None
    group_key: GroupKey | None = None
    running: Running | None = None

    @property
    def progress(self) -> JobProgress | None:
        """Its job, and where that is; None between jobs."""
        if self.running is None or self.workers is None:
            return None
        batch_job = self.running.batch_job
        return JobProgress(label=batch_job.job.redactor.text(batch_job.values), progress=self.workers.progress)

    def record_output(self, rank: int, name: str, lines: Sequence[str]) -> None:
        """Pass on what a rank prints; between jobs it is dropped."""
        if self.running is not None:
            self.running.output.write(rank, name, lines)

    def close(self) -> None:
        """End the worker group."""
        if self.workers is not None:
            self.workers.close()
            self.workers = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job that runs."""

    batch_job: BatchJob
    run_id: str | None
    output: RankOutputFiles
    started: float


@dataclass
class BatchScheduler:
    """Assigns jobs to slots, one job a slot at a time, and records how each ended.

    Args:
        directory: The batch directory, which exists and is locked by this process.
        slots: Where worker groups may run.
        tags: Further tags for the jobs' MLflow runs.
        progress: Shows how far the batch is, and prints a line for each job that ends.
    """

    directory: Path
    slots: list[Slot]
    tags: Mapping[str, str] = field(default_factory=dict)
    progress: BatchProgress | None = None
    mlflow_runs: SupervisedRuns = field(default_factory=SupervisedRuns)

    def __post_init__(self) -> None:
        self._num_ended = self._num_failed = 0
        self._num_jobs = 0
        self._ends_at_once = False

    def __enter__(self) -> Self:
        remove_stale_folders()
        if read_state(self.directory):  # only in a batch directory is a folder of this name ours
            shutil.rmtree(self.directory / GROUPS_FOLDER, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.close()
        for slot in self.slots:
            slot.close()
        with contextlib.suppress(OSError):
            (self.directory / GROUPS_FOLDER).rmdir()

    def warm_up(self, jobs: Sequence[BatchJob]) -> None:
        """Start the first worker groups, which load torch while MLflow gets ready."""
        for slot, batch_job in zip(self.slots, self._pending(jobs), strict=False):
            self._ready_workers(slot, batch_job.job)

    def dismiss(self) -> None:
        """Let the ranks end while the summary is drawn: no job follows."""
        for slot in self.slots:
            if slot.workers is not None:
                slot.workers.dismiss()

    def run(self, jobs: Sequence[BatchJob], interrupts: InterruptCounter) -> None:
        """Run every job that is not finished according to the ledger.

        Args:
            jobs: The jobs of the grid.
            interrupts: The first one stops the running jobs and starts no other, the second one ends all at once.
        """
        pending = self._pending(jobs)
        self._num_jobs, self._num_ended = len(jobs), len(jobs) - len(pending)
        passed_on = 0
        while pending or any(slot.running for slot in self.slots):
            if interrupts.count > passed_on:
                passed_on = interrupts.count
                pending.clear()
                self._interrupt(at_once=passed_on > 1, number=interrupts.signal or 15)
            for slot in self.slots:
                self._advance(slot, pending)
            self._show_progress()
            time.sleep(POLL_S)

    def _show_progress(self) -> None:
        if self.progress is None:
            return
        self.progress.show(
            num_ended=self._num_ended,
            num_failed=self._num_failed,
            num_jobs=self._num_jobs,
            running=[slot.progress for slot in self.slots],
        )

    def _pending(self, jobs: Sequence[BatchJob]) -> list[BatchJob]:
        """Jobs to run, those that can share a worker group next to each other."""
        return sorted(self._unfinished(jobs), key=lambda batch_job: str(group_key(batch_job.job)))

    def _unfinished(self, jobs: Sequence[BatchJob]) -> list[BatchJob]:
        """Jobs to run. A run that finished just before the batch was killed gets what it still lacks now."""
        finished = {entry.key for entry in ledger.read(self.directory) if entry.state == RunState.FINISHED}
        attempts: dict[str, str] = read_state(self.directory).get("attempts", {})
        by_key = {batch_job.key: batch_job for batch_job in jobs if batch_job.key not in finished}
        for name, key in attempts.items():
            directory = self.directory / name
            if key in by_key and state_in(read_status(directory)) == RunState.FINISHED:
                batch_job = by_key.pop(key)
                attempt = replace(batch_job, job=batch_job.job.in_directory(directory))
                ledger.append(self.directory, entry_from_run(self.directory, attempt))
                self._complete(attempt.job)
        return list(by_key.values())

    def _complete(self, job: Job) -> None:
        """Upload a run that finished, and whose process did not live to do it."""
        result = JobResult(state=RunState.FINISHED, exit_code=exit_codes.OK, is_reported=False)
        self.mlflow_runs.end(job.config.tracking, job.directory, result, run_id=None, redactor=job.redactor)

    def _advance(self, slot: Slot, pending: list[BatchJob]) -> None:
        """Record the slot's job if it has ended, and start the next one."""
        if slot.running is not None:
            assert slot.workers is not None
            result = slot.workers.poll()
            if result is not None:
                self._finish(slot.running, result)
                slot.running = None
        if slot.running is None and pending:
            fitting = (batch_job for batch_job in pending if group_key(batch_job.job) == slot.group_key)
            chosen = next(fitting, pending[0])
            pending.remove(chosen)
            self._start(slot, chosen)

    def _start(self, slot: Slot, batch_job: BatchJob) -> None:
        job = _in_free_directory(batch_job.job)
        batch_job = replace(batch_job, job=job)
        attempts = read_state(self.directory).get("attempts", {})
        update_state(self.directory, attempts=attempts | {job.directory.name: batch_job.key})
        workers = self._ready_workers(slot, job)
        tags = {**self.tags, tag_names.JOB: str(batch_job.number)}
        try:
            run_id = self.mlflow_runs.create(
                job.config.tracking, job.directory, name=batch_job.label, redactor=job.redactor, tags=tags
            )
        except ConfigError as error:
            result = JobResult(state=RunState.FAILED, exit_code=exit_codes.CONFIG_ERROR, cause="; ".join(error.errors))
            self._record(batch_job, result, run_id=None, seconds=0.0)
            return
        output = RankOutputFiles(job.directory, job.redactor)
        slot.running = Running(batch_job=batch_job, run_id=run_id, output=output, started=time.monotonic())
        workers.start_job(job.message(workers.next_number, run_id=run_id), timeout_s=job.timeout_s)

    def _ready_workers(self, slot: Slot, job: Job) -> WorkerGroup:
        """The slot's own worker group where it fits the job and lives, else a new one."""
        key = group_key(job)
        if slot.workers is not None and (not slot.workers.is_alive or slot.group_key != key):
            slot.close()
        if slot.workers is None:
            folder = self.directory / GROUPS_FOLDER / secrets.token_hex(4)
            plan = job.plan(gpus=slot.gpus, cores=slot.cores)
            slot.workers = WorkerGroup(plan, folder, environ=os.environ, sink=slot.record_output)
            slot.group_key = key
        return slot.workers

    def _finish(self, running: Running, result: JobResult) -> None:
        """Complete files and MLflow run of a job that has ended, and record it."""
        job = running.batch_job.job
        seconds = time.monotonic() - running.started
        running.output.flush()
        result = as_recorded(job.directory, replace(result, cause=_one_line(result.cause)))
        run_id = self.mlflow_runs.end(
            job.config.tracking,
            job.directory,
            result,
            run_id=running.run_id,
            redactor=job.redactor,
            at_once=self._ends_at_once,
        )
        self._record(running.batch_job, result, run_id=run_id, seconds=seconds)

    def _record(self, batch_job: BatchJob, result: JobResult, *, run_id: str | None, seconds: float) -> None:
        """Append the ledger line, and show it."""
        redactor = batch_job.job.redactor
        entry = replace(
            entry_from_run(self.directory, batch_job, state=result.state),
            run_id=run_id,
            seconds=round(seconds, 3),
            cause=redactor.text(result.cause) if result.cause else None,
        )
        ledger.append(self.directory, entry)
        self._num_ended += 1
        self._num_failed += entry.state == RunState.FAILED
        label = redactor.text(batch_job.short_label)
        if self.progress is not None:
            job = f"[{self._num_ended}/{self._num_jobs}] {label}"
            self.progress.print_outcome(job, describe_outcome(entry))

    def _interrupt(self, *, at_once: bool, number: int) -> None:
        self._ends_at_once = at_once
        for slot in self.slots:
            if slot.running is not None and slot.workers is not None:
                if at_once:
                    slot.workers.kill()
                slot.workers.interrupt(number)


def group_key(job: Job) -> GroupKey:
    """What jobs must share to share a worker group: world size, precision, compiler, launch file."""
    train = job.config.train
    precision = train.mixed_precision and train.mixed_precision.value
    return (job.num_processes, precision, train.compile, job.config.launch.config_file)


def new_slots(count: int, *, num_processes: int, gpus: tuple[str, ...], cores: tuple[int, ...]) -> list[Slot]:
    """Split the machine among worker groups: each has its own GPUs or, where there are none, its own cores."""
    if gpus:
        return [Slot(gpus[i * num_processes : (i + 1) * num_processes], ()) for i in range(count)]
    if count == 1 or len(cores) < count:
        return [Slot((), ()) for _ in range(count)]
    share = len(cores) // count
    return [Slot((), cores[i * share : (i + 1) * share]) for i in range(count)]


def _in_free_directory(job: Job) -> Job:
    """The job in a directory that holds no run: that of a previous attempt stays as it is, closed."""
    directory, attempt = job.directory, 1
    while directory.exists() and any(directory.iterdir()):
        close_abandoned(directory)
        attempt += 1
        directory = job.directory.with_name(f"{job.directory.name}-{attempt}")
    return job.in_directory(directory)


def _one_line(cause: str | None) -> str | None:
    """A message of several configuration errors as one line."""
    if cause is None or "\n" not in cause:
        return cause
    with contextlib.suppress(ValueError):
        _, *errors = [line.strip().removeprefix("- ") for line in cause.splitlines() if line.strip()]
        return "; ".join(errors)
    return cause
