"""How several ranks are started. Pure: job -> argv and environment, and command lines as text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

RANK_PROGRAM = "lrrunner.worker.warm_rank"
AGENT_PROGRAM = "lrrunner.launch.accelerate_agent"

SET_VARIABLE = "LRRUNNER_SET"
SUPERVISOR_VARIABLE = "LRRUNNER_SUPERVISOR"
CORES_VARIABLE = "LRRUNNER_CORES"
OUTPUT_VARIABLE = "LRRUNNER_OUTPUT"
"""Folder of named pipes, ``<local rank>.out`` and ``.err``, that a supervisor reads the ranks' words from."""

DEFAULT_SETTINGS = """\
compute_environment: LOCAL_MACHINE
distributed_type: "NO"
mixed_precision: "no"
use_cpu: false
debug: false
"""
"""A file of accelerate launch that sets nothing: without one it reads the user's default file at home, which may name
other GPUs, other machines or another backend."""

INHERITED_FROM_A_LAUNCHER = ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID", "LOCAL_RANK")
"""Variables that only a process started by ``accelerate launch`` or torchrun has."""


DEEPSPEED_REFUSED = (
    "the launcher must not use DeepSpeed, whose engine steps by itself, got {}; leave it out, and share parameters out "
    "with train.fsdp=true"
)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where a set of ranks lives when one machine does not hold it.

    Attributes:
        num_machines: How many machines.
        machine_rank: Which of them this is, from 0.
        main_process_ip: Address of machine 0.
        main_process_port: Port on machine 0, the same on all.
    """

    num_machines: int
    machine_rank: int
    main_process_ip: str
    main_process_port: int


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What a set of ranks is started with.

    Attributes:
        num_processes: Ranks, over all machines.
        gpus: This machine's GPUs as ``CUDA_VISIBLE_DEVICES`` names them; empty: the ranks train on CPUs.
        cores: CPU cores that this machine's ranks share; empty: all of them.
        config_file: The user's own file of ``accelerate launch``, whose settings then hold.
        machines: None for one machine.
    """

    num_processes: int
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    config_file: str | None = None
    machines: Machines | None = field(default=None)


def launcher_says(switch: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``accelerate launch`` has set a switch, such as ACCELERATE_USE_FSDP, for its ranks."""
    return environ.get(switch, "false").lower() in ("1", "true")


def launch_argv(plan: RankPlan, *, settings_file: str) -> list[str]:
    """The command that starts the ranks; one rank without a file of its own needs no launcher.

    On a CPU, ``accelerate launch`` starts several ranks only with ``--multi_gpu`` and ACCELERATE_USE_CPU together.

    Args:
        plan: What is started.
        settings_file: Holds :data:`DEFAULT_SETTINGS`; given where the user has named no file.

    Returns:
        argv; the agent is ``accelerate launch`` that dies with its parent.
    """
    rank_program = ["-m", RANK_PROGRAM]
    if plan.num_processes == 1 and plan.config_file is None:
        return [sys.executable, *rank_program]
    flags = ["--config_file", settings_file if plan.config_file is None else plan.config_file]
    if plan.config_file is None:
        flags += ["--multi_gpu"]
    flags += ["--num_processes", str(plan.num_processes), *_machine_flags(plan)]
    if plan.config_file is None:
        flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", AGENT_PROGRAM, *flags, *rank_program]


def _machine_flags(plan: RankPlan) -> list[str]:
    machines = plan.machines
    if machines is None:
        single = [] if plan.config_file is not None else ["--num_machines", "1"]
        return [*single, "--main_process_port", "0"]
    return [
        *("--num_machines", str(machines.num_machines)),
        *("--machine_rank", str(machines.machine_rank)),
        *("--main_process_ip", machines.main_process_ip),
        *("--main_process_port", str(machines.main_process_port)),
    ]


def launch_environment(
    plan: RankPlan, environ: Mapping[str, str], *, folder: str, supervisor: str, num_cores: int
) -> dict[str, str]:
    """The environment of the command of :func:`launch_argv`.

    Args:
        plan: What is started.
        environ: The parent's own.
        folder: Where ranks find their jobs.
        supervisor: Identity of the process that waits for the ranks.
        num_cores: CPU cores of this machine.
    """
    settings = {SET_VARIABLE: folder, SUPERVISOR_VARIABLE: supervisor}
    num_machines = plan.machines.num_machines if plan.machines else 1
    num_local = max(1, plan.num_processes // num_machines)
    if plan.gpus:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(plan.gpus)
    elif plan.config_file is None:  # the user's own file may know of devices that we do not
        settings["ACCELERATE_USE_CPU"] = "true"
    if plan.cores:
        settings[CORES_VARIABLE] = ",".join(map(str, plan.cores))
    threads = max(1, (len(plan.cores) or num_cores) // num_local)
    return {"OMP_NUM_THREADS": str(threads)} | dict(environ) | settings
