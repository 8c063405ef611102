"""What a supervised rank runs: it joins its world once, then runs job after job until there is no further one."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lrrunner.config.command_line import parse_command_line
from lrrunner.launch.mailbox import (
    NO_JOB,
    HeartbeatWriter,
    JobMailbox,
    JobMessage,
    RankOutcome,
    remove_mailbox_when_orphaned,
)
from lrrunner.system import exit_codes
from lrrunner.system.devices import keep_to_cores
from lrrunner.system.environment import OUTPUT_VARIABLE
from lrrunner.system.garbage_collection import collection_paused
from lrrunner.system.plain_values import from_plain
from lrrunner.system.processes.parent_process import die_with_parent, orphan_check
from lrrunner.system.temporary_folders import remove_multiprocessing_folder

if TYPE_CHECKING:
    from lrrunner.worker.run_job import JobRequest
    from lrrunner.worker.world import World

REPORT_WITHIN_S, REPORT_AGAIN_S = 10.0, 0.5
"""How long a rank tries to report how a job ended, and after which pause again."""


def main() -> NoReturn:
    """Run jobs until there is no further one; a job that fails midway ends the process, and its world with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # between jobs it ends a rank without a traceback, as SIGTERM does
    _redirect_output_to_pipes()
    _print_stacks_on_request()
    mailbox, orphaned = JobMailbox.of_this_rank(), orphan_check()
    remove_mailbox_when_orphaned(mailbox, orphaned)
    if "RANK" not in os.environ:  # no launcher between the supervisor and this rank
        die_with_parent()
        keep_to_cores(os.environ)
    heartbeats = HeartbeatWriter(mailbox, _rank())
    heartbeats.job_changed(NO_JOB)
    with collection_paused():
        from lrrunner.worker import run_job  # noqa: F401 - while collection is paused
        from lrrunner.worker.world import exit_now, join_world, leave_world
    world = join_world()
    number = 0
    while (message := mailbox.next_job(number, orphaned=orphaned)) is not None:
        heartbeats.job_changed(number)
        outcome = _run(world, message, mailbox, heartbeats, orphaned)
        if not _report(mailbox, number, outcome, orphaned):
            exit_now(exit_codes.UNREPORTED)
        heartbeats.job_changed(NO_JOB)
        number += 1
    if orphaned():
        mailbox.remove()
    leave_world()
    remove_multiprocessing_folder()
    exit_now(exit_codes.OK)  # at once: unloading torch takes seconds, for which the supervisor would wait


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _report(mailbox: JobMailbox, number: int, outcome: RankOutcome, orphaned: Callable[[], bool]) -> bool:
    """Report how a job ended; a disk that is full may have room again in a moment.

    Returns:
        Whether the supervisor knows, or is gone: another rank may have removed its mailbox then.
    """
    deadline = time.monotonic() + REPORT_WITHIN_S
    while True:
        try:
            mailbox.write_outcome(number, outcome)
        except OSError:
            if orphaned():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(REPORT_AGAIN_S)
        else:
            return True


def _run(
    world: World,
    message: JobMessage,
    mailbox: JobMailbox,
    heartbeats: HeartbeatWriter,
    orphaned: Callable[[], bool],
) -> RankOutcome:
    """Run one job; after a failure that leaves the world unusable, report it and end the process."""
    from lrrunner.worker.run_job import run_job
    from lrrunner.worker.world import exit_now

    errors: list[str] = []

    def on_failure(cause: str) -> NoReturn:
        outcome = RankOutcome(rank=_rank(), exit_code=exit_codes.FAILED, cause=cause)
        is_reported = _report(mailbox, message.number, outcome, orphaned)
        if orphaned():
            mailbox.remove()
        remove_multiprocessing_folder()
        exit_now(exit_codes.FAILED if is_reported else exit_codes.UNREPORTED)

    request = _request(message, heartbeats)
    exit_code = run_job(world, request, orphaned=orphaned, on_config_error=errors.append, on_failure=on_failure)
    return RankOutcome(rank=_rank(), exit_code=exit_code, cause=errors[0] if errors else None)


def _request(message: JobMessage, heartbeats: HeartbeatWriter) -> JobRequest:
    from lrrunner.config.schema import Config
    from lrrunner.worker.run_job import JobRequest

    return JobRequest(
        config=from_plain(Config, message.config),
        command_line=parse_command_line(message.arguments),
        number=message.number,
        run_id=message.run_id,
        on_step=lambda step: heartbeats.step_done(message.number, step),
        show_progress=heartbeats.show_progress,
    )


def _redirect_output_to_pipes() -> None:
    """Connect standard output and error with the supervisor, which masks secrets and sorts lines into files."""
    folder = os.environ.get(OUTPUT_VARIABLE)
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if not folder or not Path(folder).is_dir():
        return
    for descriptor, name in ((1, "out"), (2, "err")):
        # for reading too: the death of the supervisor must break no print() of a rank that has yet to save
        pipe = os.open(Path(folder) / f"{local_rank}.{name}", os.O_RDWR)
        os.dup2(pipe, descriptor)
        os.close(pipe)


def _print_stacks_on_request() -> None:
    """On SIGUSR1 print the stack of every thread, also while the main one waits in a collective."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


if __name__ == "__main__":
    main()
