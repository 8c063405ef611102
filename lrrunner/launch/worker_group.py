"""One set of ranks, watched from outside: started, given jobs, and ended whatever happens. No torch.

Everything here returns at once, so that one thread can watch several sets.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrrunner.launch.mailbox import ANOTHER_RANK_IS_SILENT, SECOND_HAND, Heartbeat, JobMailbox, JobMessage, RankOutcome
from lrrunner.launch.rank_command import DEFAULT_SETTINGS, OUTPUT_VARIABLE, RankPlan, launch_argv, launch_environment
from lrrunner.launch.rank_output import LineSink, RankOutput
from lrrunner.results.run_state import JobResult, RunState
from lrrunner.system import exit_codes
from lrrunner.system.process_identity import descendants, is_stopped, pid_of, process_identity

LAST_WORDS_S = 15.0
"""How long a set that has failed may take to record it: rank 0 tells MLflow, which may not answer."""

STOP_WITHIN_S = 30.0
CLOSE_WITHIN_S = 10.0
STACKS_WITHIN_S = 1.0
MAX_LAUNCHER_LINES = 200

WAITING = ("in _engine_run_backward", "distributed_c10d.py")
"""Top frames of a rank that waits for the others: in DDP's backward, in a collective of ours."""

_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')


class WorkerGroup:
    """A set of ranks and the process that starts them.

    Args:
        plan: What is started.
        folder: For the handover; made, and removed at the end.
        environ: The supervisor's own environment.
        sink: Given every line that a rank says.
    """

    def __init__(self, plan: RankPlan, folder: Path, *, environ: Mapping[str, str], sink: LineSink) -> None:
        self.plan = plan
        self.world_size = plan.num_processes
        self._sink = sink
        self._handover = JobMailbox(folder)
        self._handover.create()
        settings_file = folder.resolve() / "accelerate.yaml"
        settings_file.write_text(DEFAULT_SETTINGS, encoding="utf-8")
        num_machines = plan.machines.num_machines if plan.machines else 1
        self._output = RankOutput(max(1, self.world_size // num_machines), self._hear)
        self._stacks: dict[int, list[str]] | None = None
        self._launcher_lines: deque[str] = deque(maxlen=MAX_LAUNCHER_LINES)
        self._order: JobMessage | None = None
        self._number = 0
        self._beats: dict[int, Heartbeat] = {}
        self._failing_since: float | None = None
        self._suspect: str | None = None
        self._stopping_since: float | None = None
        settings = launch_environment(
            plan,
            environ,
            folder=str(folder.resolve()),
            supervisor=process_identity(),
            num_cores=os.cpu_count() or 1,
        )
        # A file, not a pipe: it never blocks the launcher and needs no reader.
        self._launcher_words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the set
        self._process = subprocess.Popen(
            launch_argv(plan, settings_file=str(settings_file)),
            env=settings | {OUTPUT_VARIABLE: str(self._output.folder)},
            stdin=subprocess.DEVNULL,
            stdout=self._launcher_words,
            stderr=self._launcher_words,
            start_new_session=True,  # the terminal's Ctrl-C is the supervisor's to pass on
        )

    @property
    def is_alive(self) -> bool:
        """Whether the set can take a job, or is at one."""
        return self._process.poll() is None

    @property
    def number(self) -> int:
        """The number of the next job, among those of this set."""
        return self._number

    def give(self, order: JobMessage, *, timeout_s: float) -> None:
        """Hand a job over.

        Args:
            order: The job, numbered :attr:`number`.
            timeout_s: How long no rank may show a sign of life.
        """
        assert self._order is None
        assert order.number == self._number
        self._order, self._timeout_s = order, timeout_s
        self._number += 1
        self._failing_since = self._stopping_since = self._suspect = None
        self._last_sign = time.monotonic()
        self._handover.give(order)

    def poll(self) -> JobResult | None:
        """Read what the ranks say and do.

        Returns:
            How the job ended, once it has. A set whose job failed is dead by then.
        """
        self._output.read()
        if self._order is None:
            return None
        number = self._order.number
        outcomes = self._handover.outcomes(number)
        result = self._result(outcomes)
        if result is not None:
            self._output.read()
            self._handover.withdraw(number)
            self._order = None
        return result

    def interrupt(self, number: int) -> None:
        """Ask the ranks to save and stop, by a signal; ranks that have not begun are ended."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        for beat in self._beats.values():
            if (pid := pid_of(beat.identity)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill(self) -> None:
        """End every process of the set at once."""
        self._beats |= self._handover.beats(self.world_size)
        pids = [pid_of(beat.identity) for beat in self._beats.values()]
        if self._process.poll() is None:
            pids += [*descendants(self._process.pid), self._process.pid]
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def dismiss(self) -> None:
        """Tell an idle set that there is no further job; its ranks end by themselves."""
        if self._order is None:
            self._handover.stop()

    def close(self) -> None:
        """End the set, in peace where it is idle, and remove its files."""
        if self._order is None and self.is_alive:
            self.dismiss()
            self._wait(CLOSE_WITHIN_S)
        self.kill()
        self._output.close()
        self._launcher_words.close()
        self._handover.remove()

    def _wait(self, timeout_s: float) -> None:
        """Until the launcher has ended; ranks that say much must not wait for a reader."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive and time.monotonic() < deadline:
            self._output.read()
            time.sleep(0.02)

    def _result(self, outcomes: list[RankOutcome]) -> JobResult | None:
        now = time.monotonic()
        by_rank = {outcome.rank: outcome for outcome in outcomes}
        failed = any(outcome.code == exit_codes.FAILED for outcome in outcomes)
        if not failed and len(by_rank) == self.world_size:
            return _told(by_rank[0])
        beats = self._handover.beats(self.world_size)
        if beats != self._beats:
            self._beats, self._last_sign = beats, now
            if self._order is not None and all(
                beats.get(rank, Heartbeat(identity="")).job >= self._order.number for rank in range(self.world_size)
            ):
                self._handover.withdraw(self._order.number)
        if failed or not self.is_alive:
            if self._failing_since is None:
                self._failing_since, self._suspect = now, self._silent_rank(outcomes)
            if not self.is_alive or now - self._failing_since > LAST_WORDS_S:
                return self._failure(self._handover.outcomes(self._number - 1))
        elif self._stopping_since is not None:
            if not beats or now - self._stopping_since > STOP_WITHIN_S:
                self.kill()
                return _stopped_early()
        elif now - self._last_sign > self._timeout_s:
            cause = self._hung(self._beats, f"no step for {self._timeout_s:g} s")
            self.kill()
            return JobResult(state=RunState.FAILED, exit_code=exit_codes.FAILED, cause=cause, is_reported=False)
        return None

    def _failure(self, outcomes: list[RankOutcome]) -> JobResult:
        """The set has ended, or will not: who was the first?"""
        self.kill()
        by_rank = {outcome.rank: outcome for outcome in outcomes}
        if 0 in by_rank and by_rank[0].code != exit_codes.FAILED:  # the job itself was over
            return _told(by_rank[0])
        if self._stopping_since is not None:
            return _stopped_early()
        causes = [outcome.cause for outcome in outcomes if outcome.cause and outcome.code == exit_codes.FAILED]
        own = [cause for cause in causes if not any(words in cause for words in SECOND_HAND)]
        cause = own[0] if own else self._suspect or self._silent_death()
        cause = cause or (causes[0] if causes else self._never_came_up())
        return JobResult(
            state=RunState.FAILED,
            exit_code=exit_codes.FAILED,
            cause=cause,
            is_reported=bool(own) and 0 in by_rank,
        )

    def _silent_death(self) -> str | None:
        """The rank that ended first, without a word, as the launcher saw it."""
        rank, code = 0, self._process.returncode
        if "lrrunner.launch.accelerate_agent" in self._process.args:  # type: ignore[operator]
            found = _ROOT_CAUSE.search(self._launcher_text())
            if found is None:
                return None
            rank, code = int(found[1]), int(found[2])
        if not self._beats:
            return None
        if code < 0:
            return f"rank {rank}: killed by {_signal_name(-code)}"
        return f"rank {rank}: ended with exit code {code} and without a word"

    def _never_came_up(self) -> str:
        lines = [line for line in self._launcher_text().splitlines() if line.strip()] + list(self._launcher_lines)
        last = lines[-1].strip() if lines else "it said nothing"
        return f"the ranks did not come up: {last}"

    def _launcher_text(self) -> str:
        self._launcher_words.seek(0)
        return self._launcher_words.read()

    def _silent_rank(self, outcomes: list[RankOutcome]) -> str | None:
        """The rank that others gave up waiting for, while it still lives."""
        if not any(ANOTHER_RANK_IS_SILENT in (outcome.cause or "") for outcome in outcomes):
            return None
        told = {outcome.rank for outcome in outcomes}
        others = {rank: beat for rank, beat in self._beats.items() if rank not in told}
        return self._hung(others, "no answer within run.timeout_s") if others else None

    def _hung(self, suspects: Mapping[int, Heartbeat], words: str) -> str:
        """Which rank keeps the others waiting, and where it stands; the stacks go to the ranks' output."""
        pids = {rank: pid_of(beat.identity) for rank, beat in suspects.items()}
        for rank, pid in sorted(pids.items()):
            if pid is not None and is_stopped(pid):
                return f"rank {rank}: stopped by a signal (SIGSTOP), {words}"
        self._stacks = {}
        for pid in pids.values():
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + STACKS_WITHIN_S
        while time.monotonic() < deadline:
            self._output.read()
            time.sleep(0.05)
        stacks = {rank: "".join(lines) for rank, lines in self._stacks.items()}
        self._stacks = None
        for rank in sorted(pids):
            stack = stacks.get(rank, "")
            if not any(mark in stack for mark in WAITING):
                return f"rank {rank}: {words}{_place(stack)}"
        return f"{words} on any rank; see ranks/*.out for where each one stands"

    def _hear(self, local_rank: int, name: str, lines: Sequence[str]) -> None:
        if self._stacks is not None:
            self._stacks.setdefault(local_rank, []).extend(lines)
            name = "stack"
        self._launcher_lines.extend(lines)
        self._sink(local_rank, name, lines)


def _told(outcome: RankOutcome) -> JobResult:
    """What rank 0 says of a job that left its set whole."""
    if outcome.code == exit_codes.OK:
        return JobResult(state=RunState.FINISHED, exit_code=outcome.code)
    if outcome.code == exit_codes.CONFIG_ERROR:
        return JobResult(state=RunState.FAILED, exit_code=outcome.code, cause=outcome.cause)
    return JobResult(state=RunState.KILLED, exit_code=outcome.code, cause="interrupted")


def _stopped_early() -> JobResult:
    return JobResult(
        state=RunState.KILLED, exit_code=exit_codes.TERMINATED, cause="stopped before it could save", is_reported=False
    )


def _place(stack: str) -> str:
    """Where the main thread of a faulthandler's output stands."""
    threads = re.split(r"^(?=(?:Current thread|Thread) )", stack, flags=re.MULTILINE)
    frames = _FRAME.search(threads[-1]) if threads else None
    return "" if frames is None else f", at {frames[1]}:{frames[2]} in {frames[3]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
