"""The rank program without torch: ``python -m tests.stub_rank`` instead of ``lrrunner.worker.warm_rank``.

Mailbox, heartbeats, pipes, stacks and signals are those of the real program. Only what a job does is imitated: the
components of ``tests/integration/parts.py`` fail, hang and wait as the real ones do, ranks meet after each step through
files, and rank 0 writes a run directory. So one test can run with real ranks and with these, which start in 0.1 CPU
seconds instead of 3.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lrrunner.config.command_line import CommandLine
from lrrunner.config.schema import Config
from lrrunner.core.lr_schedules import exponential_lr
from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT, JobMailbox
from lrrunner.records import Progress, Step
from lrrunner.results.run_state import RunState
from lrrunner.results.writer import RunDirectory
from lrrunner.system import exit_codes
from lrrunner.system.atomic_files import write_text
from lrrunner.system.environment import MAILBOX_VARIABLE
from lrrunner.system.output.redaction import Redactor
from lrrunner.system.plain_values import to_plain
from lrrunner.system.processes.process_identity import is_alive, process_identity
from lrrunner.system.processes.stop_signal import StopSignal
from lrrunner.worker import warm_rank

POLL_S = 0.005
DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """As in ``lrrunner.worker.run_job``."""

    config: Config
    command_line: CommandLine = field(default_factory=CommandLine)
    number: int = 0
    run_id: str | None = None
    on_step: Callable[[int], None] = lambda step: None
    show_progress: Callable[[Progress | None], None] | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of this worker group, which meet through files of its mailbox."""

    rank: int
    world_size: int
    mailbox: JobMailbox

    def meet(self, job: int, step: int, *, stops: bool, timeout_s: float) -> bool:
        """Wait for every rank.

        Returns:
            Whether any rank stops.

        Raises:
            JobFailure: another rank is gone, or does not come in time.
        """
        folder = self.mailbox.folder / "meetings"
        folder.mkdir(exist_ok=True)
        files = [folder / f"{job}.{step}.{rank}" for rank in range(self.world_size)]
        write_text(files[self.rank], "stop" if stops else "")
        deadline = time.monotonic() + timeout_s
        while not all(file.exists() for file in files):
            beats = self.mailbox.heartbeats(self.world_size)
            if not all(is_alive(beat.identity) for beat in beats.values()):
                raise JobFailure(f"{ANOTHER_RANK_IS_GONE}, its connection was lost")
            if time.monotonic() > deadline:
                raise JobFailure(f"{ANOTHER_RANK_IS_SILENT}, a collective timed out")
            time.sleep(POLL_S)
        return any(file.read_text() for file in files)


class JobFailure(Exception):  # noqa: N818 - the failure of a job, not an error of this program
    """What a job of this rank fails with."""


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What a component of ``parts.py`` does.

    Attributes:
        seconds: Duration of a step.
        failing_ranks: Ranks that fail.
        at: The step, from 1, in which they fail.
        how: As in ``parts.Failing``.
        message: Of an exception.
    """

    seconds: float = 0.0
    failing_ranks: tuple[int, ...] = ()
    at: int = 4
    how: str = "raise"
    message: str = "RuntimeError: the model's own error"

    def step(self, rank: int, number: int) -> None:
        """Do step ``number``, from 1, on a rank."""
        if number == self.at and rank in self.failing_ranks:
            if self.how in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.SIGSTOP)
            if self.how == "vanish":
                os._exit(0)
            while self.how == "hang":
                time.sleep(0.01)
            if self.how == "raise":
                raise JobFailure(self.message)
        time.sleep(self.seconds)


def imitation(model: Mapping[str, Any], world_size: int) -> Imitation:
    """What the model of a job does."""
    name = str(model["_target_"]).removeprefix("parts.")
    if name == "SlowMlp":
        return Imitation(seconds=model.get("seconds", 0.05))
    if name == "Failing":
        return Imitation(
            seconds=model.get("seconds", 0.0),
            failing_ranks=(model["rank"],),
            at=model["at"],
            how=model.get("how", "raise"),
        )
    if name == "Moody":
        hows = {"all_raise": "raise", "raise": "raise", "kill": "kill", "stop": "stop"}
        failing = tuple(range(world_size)) if model["mood"] == "all_raise" else (1,)
        how = hows.get(model["mood"])
        return Imitation(failing_ranks=failing if how else (), how=how or "", message="RuntimeError: in a bad mood")
    if name == "Pids":
        with Path(f"pids-{model['tag']}").open("a") as file:
            file.write(f"{os.getpid()}:0\n")
    return Imitation()


def join_world() -> World:
    """As in ``lrrunner.worker.world``."""
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return World(rank=rank, world_size=world_size, mailbox=JobMailbox(Path(os.environ[MAILBOX_VARIABLE])))


def leave_world() -> None:
    """As in ``lrrunner.worker.world``."""


def exit_now(code: int) -> NoReturn:
    """As in ``lrrunner.worker.world``."""
    sys.exit(code)


def run_job(
    world: World,
    request: JobRequest,
    *,
    orphaned: Callable[[], bool],
    on_config_error: Callable[[str], None],
    on_failure: Callable[[str], NoReturn],
) -> int:
    """As in ``lrrunner.worker.run_job``."""
    redactor = Redactor.for_run(to_plain(request.config), os.environ, request.command_line.overrides)
    directory = _begin(request, redactor) if world.rank == 0 else None

    def end(state: RunState, cause: str | None) -> None:
        if directory is not None:
            directory.update_status(state=state, cause=cause)

    with StopSignal(on_stuck=lambda cause: end(RunState.KILLED, cause), orphaned=orphaned) as stop_signal:
        try:
            is_stopped = _steps(world, request, directory, stop_signal)
        except JobFailure as failure:
            cause = f"rank {world.rank}: {failure}"
            if ANOTHER_RANK_IS_GONE not in cause:
                end(RunState.FAILED, cause)
            on_failure(cause)
    end(RunState.KILLED if is_stopped else RunState.FINISHED, "interrupted" if is_stopped else None)
    return stop_signal.exit_code if is_stopped else exit_codes.OK


def _begin(request: JobRequest, redactor: Redactor) -> RunDirectory:
    assert request.config.run.dir is not None
    directory = RunDirectory(Path(request.config.run.dir), redactor)
    directory.write_inputs(to_plain(request.config), request.command_line.overrides)
    directory.update_status(
        state=RunState.RUNNING, mlflow_run_id=request.run_id, last_step=None, cause=None, process=process_identity()
    )
    return directory


def _steps(world: World, request: JobRequest, directory: RunDirectory | None, stop_signal: StopSignal) -> bool:
    """Every step of the sweep; whether it was stopped before the last one."""
    part = imitation(request.config.model, world.world_size)
    timeout_s = request.config.run.timeout_s or DEFAULT_TIMEOUT_S
    sweep = request.config.sweep
    lrs = exponential_lr(start_lr=sweep.start_lr, end_lr=sweep.end_lr, num_steps=sweep.num_steps)
    for number, lr in enumerate(lrs.tolist()):
        part.step(world.rank, number + 1)
        stops = world.meet(request.number, number, stops=stop_signal.requested, timeout_s=timeout_s)
        if directory is not None:
            loss = 2.0 - number / sweep.num_steps
            directory.record(Step(step=number, lr=lr, loss=loss, timestamp_ms=time.time_ns() // 1_000_000))
        request.on_step(number)
        if stops:
            return True
    return False


def main() -> NoReturn:
    """The real rank program with the functions of this module in place of those that load torch."""
    if os.environ.get("STUB_STOPS_AT_START") == os.environ.get("RANK", "0"):
        os.kill(os.getpid(), signal.SIGSTOP)
    here = sys.modules[__name__]
    for name in ("lrrunner.worker.world", "lrrunner.worker.run_job"):
        module = ModuleType(name)
        vars(module).update(vars(here))
        sys.modules[name] = module
    warm_rank.main()


if __name__ == "__main__":
    main()
