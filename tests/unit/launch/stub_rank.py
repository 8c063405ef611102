"""A rank without torch: what it does with a job stands in the job's configuration."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from lrrunner.launch.mailbox import NO_JOB, HeartbeatWriter, JobMailbox, RankOutcome
from lrrunner.system.environment import MAILBOX_VARIABLE, OUTPUT_VARIABLE


def main() -> None:
    """Run jobs that finish, end or kill their process, or hang."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    mailbox = JobMailbox(Path(os.environ[MAILBOX_VARIABLE]))
    heartbeats = HeartbeatWriter(mailbox, 0)
    heartbeats.job_changed(NO_JOB)
    number = 0
    while (message := mailbox.next_job(number, orphaned=lambda: False)) is not None:
        heartbeats.job_changed(number)
        run(message.config["stub"])
        exit_code = message.config.get("exit_code", 0)
        mailbox.write_outcome(number, RankOutcome(rank=0, exit_code=exit_code, cause="mine"))
        heartbeats.job_changed(NO_JOB)
        number += 1


def run(behaviour: str) -> None:
    """One job."""
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "exit":
        sys.exit(3)
    if behaviour == "hang":
        os.dup2(os.open(Path(os.environ[OUTPUT_VARIABLE]) / "0.err", os.O_RDWR), 2)
        time.sleep(60)


if __name__ == "__main__":
    main()
