"""Command and environment that start a worker group. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lrrunner.system.environment import CORES_VARIABLE, MAILBOX_VARIABLE, SUPERVISOR_VARIABLE, USE_CPU_VARIABLE

RANK_PROGRAM = "lrrunner.worker.warm_rank"
AGENT_PROGRAM = "lrrunner.launch.accelerate_agent"

DEFAULT_SETTINGS = """\
compute_environment: LOCAL_MACHINE
distributed_type: "NO"
mixed_precision: "no"
use_cpu: false
debug: false
"""
"""A configuration file of accelerate launch that sets nothing: without one it reads the user's default file at home,
which may name other GPUs, other machines or another backend."""


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What a worker group is started with.

    Attributes:
        num_processes: Number of ranks.
        gpus: GPUs as ``CUDA_VISIBLE_DEVICES`` names them; empty: the ranks train on CPUs.
        cores: CPU cores that the ranks share; empty: all of them.
        config_file: The user's own configuration file of ``accelerate launch``, whose settings then hold.
        rank_program: Module that every rank runs.
    """

    num_processes: int
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    config_file: str | None = None
    rank_program: str = RANK_PROGRAM

    @property
    def needs_launcher(self) -> bool:
        """Whether the ranks are started by ``accelerate launch``; a single rank needs none."""
        return self.num_processes > 1 or self.config_file is not None


def launch_argv(plan: RankPlan, *, settings_file: str) -> list[str]:
    """The command that starts the ranks.

    On a CPU, ``accelerate launch`` starts several ranks only with ``--multi_gpu`` and ACCELERATE_USE_CPU together.

    Args:
        plan: What is started.
        settings_file: Holds :data:`DEFAULT_SETTINGS`; used where the plan has no file. Its folder is the mailbox.

    Returns:
        argv; the agent is ``accelerate launch`` that dies with its parent.
    """
    rank_program = ["-m", plan.rank_program]
    if not plan.needs_launcher:
        return [sys.executable, *rank_program]
    size = ["--num_processes", str(plan.num_processes)]
    # by default in TMPDIR, where torch leaves it
    logs = str(Path(settings_file).with_name("launcher"))
    port = ["--main_process_port", "0", "--log_dir", logs]
    if plan.config_file is not None:
        flags = ["--config_file", plan.config_file, *size, *port]
    else:
        defaults = ["--mixed_precision", "no", "--dynamo_backend", "no"]
        flags = ["--config_file", settings_file, "--multi_gpu", *size, "--num_machines", "1", *port, *defaults]
    return [sys.executable, "-m", AGENT_PROGRAM, *flags, *rank_program]


def launch_environment(
    plan: RankPlan, environ: Mapping[str, str], *, mailbox: str, supervisor: str, num_cores: int
) -> dict[str, str]:
    """The environment of the command of :func:`launch_argv`.

    Args:
        plan: What is started.
        environ: The parent's own.
        mailbox: Folder in which the ranks find their jobs.
        supervisor: Identity of the process that waits for the ranks.
        num_cores: CPU cores of this machine.
    """
    settings = {MAILBOX_VARIABLE: mailbox, SUPERVISOR_VARIABLE: supervisor}
    if plan.gpus:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(plan.gpus)
    elif plan.config_file is None:  # the user's own file may configure devices that lrrunner does not know
        settings[USE_CPU_VARIABLE] = "true"
    if plan.cores:
        settings[CORES_VARIABLE] = ",".join(map(str, plan.cores))
    threads = max(1, (len(plan.cores) or num_cores) // plan.num_processes)
    return {"OMP_NUM_THREADS": str(threads)} | dict(environ) | settings
