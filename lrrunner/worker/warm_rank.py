"""What a supervised rank runs: it joins its world once, then takes job after job until there is none to come."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lrrunner.config.command_line import parse_command_line
from lrrunner.launch.accelerate_agent import die_with_parent, is_supervised, keep_to_cores
from lrrunner.launch.mailbox import (
    IDLE,
    HeartbeatWriter,
    JobMailbox,
    JobMessage,
    RankOutcome,
    remove_folder_when_orphaned,
)
from lrrunner.launch.rank_command import OUTPUT_VARIABLE, SET_VARIABLE
from lrrunner.system import exit_codes

if TYPE_CHECKING:
    from lrrunner.worker.run_job import Work


def main() -> NoReturn:
    """Take jobs until told to stop; a job that fails in the middle ends the process, and its world with it."""
    _redirect_output_to_pipes()
    _show_stack_when_asked()
    parent = os.getppid()
    handover, rank = JobMailbox(Path(os.environ[SET_VARIABLE])), int(os.environ.get("RANK", "0"))

    def orphaned() -> bool:
        return os.getppid() != parent or not is_supervised()

    remove_folder_when_orphaned(handover.folder, orphaned)
    if "RANK" not in os.environ:  # no launcher between the supervisor and this rank
        die_with_parent()
        keep_to_cores()
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # so that a _target_ in the user's own directory is found
    pulse = HeartbeatWriter(handover, rank)
    pulse.change(job=IDLE)
    from lrrunner.worker.run_job import exit_now, join_world, leave_world, run_job

    world = join_world()
    number = 0
    while (order := handover.next_job(number, orphaned=orphaned)) is not None:
        pulse.change(job=number)
        mistakes: list[str] = []

        def on_failure(cause: str, job: int = number) -> NoReturn:
            with contextlib.suppress(OSError):
                handover.report(job, RankOutcome(rank=rank, code=exit_codes.FAILED, cause=cause))
            if orphaned():
                handover.remove()
            exit_now(exit_codes.FAILED)

        code = run_job(
            world,
            _work(order, pulse),
            orphaned=orphaned,
            on_mistake=mistakes.append,
            on_failure=on_failure,
        )
        with contextlib.suppress(OSError):  # of a supervisor that is gone, another rank may have removed the folder
            handover.report(number, RankOutcome(rank=rank, code=code, cause=mistakes[0] if mistakes else None))
        pulse.change(job=IDLE)
        number += 1
    if orphaned():
        handover.remove()
    leave_world()
    exit_now(exit_codes.OK)  # at once: taking torch apart takes seconds that the supervisor would wait


def _work(order: JobMessage, pulse: HeartbeatWriter) -> Work:
    from lrrunner.config.serialization import config_from
    from lrrunner.worker.run_job import Work

    return Work(
        config=config_from(order.config),
        command_line=parse_command_line(order.arguments),
        number=order.number,
        run_id=order.run_id,
        on_step=lambda step: pulse.step(order.number, step),
        supervised=True,
    )


def _redirect_output_to_pipes() -> None:
    """Standard output and error go to the supervisor, which masks secrets and knows where they belong."""
    folder = os.environ.get(OUTPUT_VARIABLE)
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if not folder or not Path(folder).is_dir():
        return
    for descriptor, name in ((1, "out"), (2, "err")):
        # for reading too, so that a supervisor's death breaks no print() of a rank that has yet to save
        pipe = os.open(Path(folder) / f"{local_rank}.{name}", os.O_RDWR)
        os.dup2(pipe, descriptor)
        os.close(pipe)


def _show_stack_when_asked() -> None:
    """SIGUSR1 prints where every thread is, also while the main one waits in a collective."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


if __name__ == "__main__":
    main()
