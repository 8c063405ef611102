"""A worker group: the ranks of one machine, started, given jobs, watched and ended from outside. No torch.

Nothing here blocks for long, so that one thread can watch several groups.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrrunner.launch.failure_cause import (
    describe_disappearance,
    describe_exit,
    describe_launcher,
    hung_rank,
    primary_cause,
    reported_causes,
    root_cause,
)
from lrrunner.launch.mailbox import ANOTHER_RANK_IS_SILENT, JobMailbox, JobMessage, RankOutcome
from lrrunner.launch.rank_command import DEFAULT_SETTINGS, RankPlan, launch_argv, launch_environment
from lrrunner.launch.rank_output import LineSink, RankPipes
from lrrunner.launch.rank_processes import RankProcesses, send_signal
from lrrunner.records import Progress
from lrrunner.results.run_state import JobResult, RunState
from lrrunner.system import exit_codes
from lrrunner.system.environment import OUTPUT_VARIABLE
from lrrunner.system.processes.process_identity import is_stopped, process_identity

RECORD_FAILURE_WITHIN_S = 15.0
"""How long ranks may take to record a failure: rank 0 reports it to MLflow, which may not answer."""

STOP_WITHIN_S = 30.0
CLOSE_WITHIN_S = 10.0
STACKS_WITHIN_S = 1.0
POLL_S = 0.02
MAX_LAST_LINES = 200


@dataclass
class _RunningJob:
    """The job that the ranks work on; times are those of ``time.monotonic``.

    Attributes:
        message: As the ranks receive it.
        timeout_s: Longest time without a heartbeat.
        heartbeat_at: When the last heartbeat was noticed.
        has_begun: Whether any rank has read the job.
        failing_since: When a failure was noticed.
        hung_cause: The rank that the others gave up waiting for, noticed together with the failure.
        gone: Ranks whose process was gone then, without a report.
        stopping_since: When the ranks were asked to stop.
    """

    message: JobMessage
    timeout_s: float
    heartbeat_at: float
    has_begun: bool = False
    failing_since: float | None = None
    hung_cause: str | None = None
    gone: Sequence[int] = ()
    stopping_since: float | None = None


class WorkerGroup:
    """Ranks and the process that starts them.

    Args:
        plan: What is started.
        folder: The mailbox; made here, and removed at the end.
        environ: The supervisor's own environment.
        sink: Receives every line that a rank prints.
    """

    def __init__(self, plan: RankPlan, folder: Path, *, environ: Mapping[str, str], sink: LineSink) -> None:
        self.plan = plan
        self.world_size = plan.num_processes
        self._sink = sink
        self._mailbox = JobMailbox(folder)
        self._mailbox.create()
        self._pipes = RankPipes(self.world_size, self._receive)
        self._last_lines: deque[str] = deque(maxlen=MAX_LAST_LINES)
        self._stacks: dict[int, list[str]] | None = None
        self._job: _RunningJob | None = None
        self._next_number = 0
        # A file, not a pipe: it never blocks the launcher and needs no reader.
        self._launcher_output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the group
        self._process = self._start(folder.resolve(), environ)
        self._ranks = RankProcesses(
            self._mailbox, world_size=self.world_size, root=self._process.pid, is_launcher=plan.needs_launcher
        )

    def _start(self, folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        settings_file = folder / "accelerate.yaml"
        settings_file.write_text(DEFAULT_SETTINGS, encoding="utf-8")
        variables = launch_environment(
            self.plan,
            environ,
            mailbox=str(folder),
            supervisor=process_identity(),
            num_cores=os.cpu_count() or 1,
        )
        return subprocess.Popen(
            launch_argv(self.plan, settings_file=str(settings_file)),
            env=variables | {OUTPUT_VARIABLE: str(self._pipes.folder)},
            stdin=subprocess.DEVNULL,
            stdout=self._launcher_output,
            stderr=self._launcher_output,
            start_new_session=True,  # a Ctrl-C of the terminal reaches the supervisor alone, which passes it on
        )

    @property
    def is_alive(self) -> bool:
        """Whether the group has a job or can take one."""
        return self._process.poll() is None

    @property
    def next_number(self) -> int:
        """The number of the next job within this group."""
        return self._next_number

    @property
    def progress(self) -> Progress | None:
        """Where the job is, as rank 0 last reported it; None before its first step and after its last."""
        heartbeat = self._ranks.heartbeats.get(0)
        if self._job is None or heartbeat is None or heartbeat.job != self._job.message.number:
            return None
        return heartbeat.progress

    def start_job(self, message: JobMessage, *, timeout_s: float) -> None:
        """Give the ranks a job.

        Args:
            message: The job, numbered :attr:`next_number`.
            timeout_s: Longest time without a heartbeat.
        """
        assert self._job is None
        assert message.number == self._next_number
        self._job = _RunningJob(message=message, timeout_s=timeout_s, heartbeat_at=time.monotonic())
        self._next_number += 1
        self._mailbox.post(message)

    def poll(self) -> JobResult | None:
        """Read output, heartbeats and outcomes of the ranks.

        Returns:
            How the job ended, once it has. A group whose job failed is dead by then.
        """
        self._pipes.read()
        if self._job is None:
            return None
        result = self._result(self._job)
        if result is not None:
            self._pipes.read()
            self._mailbox.withdraw(self._job.message.number)
            self._job = None
        return result

    def interrupt(self, number: int) -> None:
        """Ask the ranks to save and stop, by a signal; ranks that have begun no job are killed at the next poll."""
        if self._job is not None and self._job.stopping_since is None:
            self._job.stopping_since = time.monotonic()
        send_signal(number, self._ranks.pids_with_heartbeat())

    def kill(self) -> None:
        """Kill every process of the group."""
        self._ranks.read_heartbeats()
        send_signal(signal.SIGKILL, self._ranks.everything(launcher_is_alive=self.is_alive))
        self._process.wait()

    def dismiss(self) -> None:
        """Let an idle group know that there is no further job; its ranks end by themselves."""
        if self._job is None:
            self._mailbox.post_end()

    def close(self) -> None:
        """End the group, by dismissal where it is idle, and remove its files."""
        if self._job is None and self.is_alive:
            self.dismiss()
            self._wait(CLOSE_WITHIN_S)
        self.kill()
        self._pipes.close()
        self._launcher_output.close()
        self._mailbox.remove()

    def _wait(self, timeout_s: float) -> None:
        """Wait for the end of the launcher; ranks that print much must not wait for a reader."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive and time.monotonic() < deadline:
            self._pipes.read()
            time.sleep(POLL_S)

    def _result(self, job: _RunningJob) -> JobResult | None:
        """How the job has ended; None while it runs."""
        outcomes = self._mailbox.outcomes(job.message.number)
        has_failed = any(outcome.exit_code == exit_codes.FAILED for outcome in outcomes)
        by_rank = {outcome.rank: outcome for outcome in outcomes}
        if not has_failed and by_rank.keys() >= set(range(self.world_size)):
            return _reported_result(by_rank[0])
        now = time.monotonic()
        self._read_heartbeats(job, now)
        if (error := self._world_error()) is not None:
            self.kill()
            return JobResult(state=RunState.FAILED, exit_code=exit_codes.CONFIG_ERROR, cause=error, is_reported=False)
        if has_failed or not self.is_alive:
            return self._failure(job, outcomes, now)
        if job.stopping_since is not None:
            if not job.has_begun or now - job.stopping_since > STOP_WITHIN_S:
                self.kill()
                return _stopped_early()
        elif now - job.heartbeat_at > job.timeout_s:
            cause = self._hung_rank(f"no step for {job.timeout_s:g} s")
            self.kill()
            return _failed(cause, is_reported=False)
        return None

    def _read_heartbeats(self, job: _RunningJob, now: float) -> None:
        if not self._ranks.read_heartbeats():
            return
        job.heartbeat_at = now
        number = job.message.number
        job.has_begun |= any(heartbeat.job == number for heartbeat in self._ranks.heartbeats.values())
        if sum(heartbeat.job >= number for heartbeat in self._ranks.heartbeats.values()) == self.world_size:
            self._mailbox.withdraw(number)  # every rank has read it

    def _world_error(self) -> str | None:
        """What is wrong with the number of ranks that a file of the user's has started."""
        sizes = {heartbeat.world_size for heartbeat in self._ranks.heartbeats.values()} - {self.world_size}
        if self.plan.config_file is None or not sizes:
            return None
        return (
            f"launch.num_processes must equal the ranks that are started, got {self.world_size} and {sizes.pop()} with "
            f"launch.config_file={self.plan.config_file}; correct its distributed_type (MULTI_GPU starts several ranks)"
        )

    def _failure(self, job: _RunningJob, outcomes: Sequence[RankOutcome], now: float) -> JobResult | None:
        """The result after a failure; None while the ranks may still record it."""
        if job.failing_since is None:
            job.failing_since, job.hung_cause = now, self._silent_rank(outcomes)
            job.gone = self._ranks.gone({outcome.rank for outcome in outcomes})
        if self.is_alive and now - job.failing_since <= RECORD_FAILURE_WITHIN_S:
            return None
        outcomes = self._mailbox.outcomes(job.message.number)
        launcher_code = self._process.poll()
        self.kill()
        by_rank = {outcome.rank: outcome for outcome in outcomes}
        if 0 in by_rank and by_rank[0].exit_code != exit_codes.FAILED:  # the job itself was over
            return _reported_result(by_rank[0])
        if job.stopping_since is not None:
            return _stopped_early()
        causes = reported_causes(outcomes)
        cause = primary_cause(causes)
        if cause is not None:
            return _failed(cause, is_reported=0 in by_rank)
        cause = job.hung_cause or self._unreported_exit(by_rank, job.gone, launcher_code)
        return _failed(cause or next(iter(causes), None) or self._failed_start(), is_reported=False)

    def _unreported_exit(self, reported: Collection[int], gone: Sequence[int], launcher_code: int | None) -> str | None:
        """The process that ended first without reporting a cause; None where no rank had begun.

        Args:
            reported: Ranks that have reported a cause.
            gone: Ranks whose process was gone, without a report, when the failure was noticed.
            launcher_code: Exit code of the process that the supervisor has started, before it was killed by this one.
        """
        if not self._ranks.heartbeats:
            return None
        if not self.plan.needs_launcher:
            return describe_exit(0, self._process.returncode)
        if launcher_code is not None and launcher_code < 0:
            return describe_launcher(launcher_code)
        output = self._launcher_text()
        first = root_cause(output)
        if first is not None and first[0] not in reported:
            return describe_exit(*first)
        return describe_disappearance(gone[0], output) if gone else None

    def _failed_start(self) -> str:
        lines = [line for line in self._launcher_text().splitlines() if line.strip()] + list(self._last_lines)
        last = lines[-1].strip() if lines else "they printed nothing"
        return f"the ranks did not start: {last}"

    def _launcher_text(self) -> str:
        self._launcher_output.seek(0)
        return self._launcher_output.read()

    def _silent_rank(self, outcomes: Sequence[RankOutcome]) -> str | None:
        """The rank that others gave up waiting for, while it is still alive."""
        if not any(ANOTHER_RANK_IS_SILENT in (outcome.cause or "") for outcome in outcomes):
            return None
        reported = {outcome.rank for outcome in outcomes}
        if reported >= self._ranks.heartbeats.keys():
            return None
        return self._hung_rank("no answer within run.timeout_s", reported=reported)

    def _hung_rank(self, symptom: str, *, reported: Collection[int] = ()) -> str:
        """The rank that the others wait for, and its position; the stacks are added to the ranks' output.

        Args:
            symptom: What was noticed.
            reported: Ranks that are not suspected, since they have reported how the job ended.
        """
        pids = {rank: pid for rank, pid in self._ranks.pids().items() if rank not in reported}
        for rank, pid in sorted(pids.items()):
            if is_stopped(pid):
                return f"rank {rank}: stopped by a signal (SIGSTOP), {symptom}"
        for rank in range(self.world_size):
            if rank not in pids and rank not in reported:
                return f"rank {rank}: its process is gone, {symptom}"
            if rank not in self._ranks.heartbeats:
                return f"rank {rank}: no heartbeat since its start, {symptom}"
        stacks = self._request_stacks(pids.values())
        return hung_rank({rank: stacks.get(rank, "") for rank in pids}, symptom)

    def _request_stacks(self, pids: Iterable[int]) -> dict[int, str]:
        """Where every thread of the ranks is, as faulthandler prints it on SIGUSR1."""
        self._stacks = {}
        send_signal(signal.SIGUSR1, pids)
        deadline = time.monotonic() + STACKS_WITHIN_S
        while time.monotonic() < deadline:
            self._pipes.read()
            time.sleep(POLL_S)
        stacks, self._stacks = self._stacks, None
        return {rank: "".join(lines) for rank, lines in stacks.items()}

    def _receive(self, local_rank: int, name: str, lines: Sequence[str]) -> None:
        if self._stacks is not None:
            self._stacks.setdefault(local_rank, []).extend(lines)
            name = "stack"
        self._last_lines.extend(lines)
        self._sink(local_rank, name, lines)


def _reported_result(outcome: RankOutcome) -> JobResult:
    """The result of a job that left its worker group intact, as rank 0 has reported it."""
    if outcome.exit_code == exit_codes.OK:
        return JobResult(state=RunState.FINISHED, exit_code=outcome.exit_code)
    if outcome.exit_code == exit_codes.CONFIG_ERROR:
        return JobResult(state=RunState.FAILED, exit_code=outcome.exit_code, cause=outcome.cause)
    return JobResult(state=RunState.KILLED, exit_code=outcome.exit_code, cause="interrupted")


def _failed(cause: str, *, is_reported: bool) -> JobResult:
    return JobResult(state=RunState.FAILED, exit_code=exit_codes.FAILED, cause=cause, is_reported=is_reported)


def _stopped_early() -> JobResult:
    return JobResult(
        state=RunState.KILLED, exit_code=exit_codes.TERMINATED, cause="stopped before it could save", is_reported=False
    )
