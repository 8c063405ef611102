"""The world of ranks that a process joins once, runs jobs in, and leaves."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import PartialState

from lrrunner.errors import ConfigError
from lrrunner.launch.machine_checks import DEEPSPEED_REFUSED
from lrrunner.system import exit_codes
from lrrunner.system.environment import USE_CPU_VARIABLE, USE_DEEPSPEED_VARIABLE, launcher_switch_is_on
from lrrunner.system.output.terminal import write_error
from lrrunner.training import collectives
from lrrunner.training.collectives import Collective
from lrrunner.worker.deferred_dynamo import defer_dynamo, is_dynamo_loaded

RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a rank of several needs to find the others."""

BUILD_TIMEOUT = timedelta(hours=1)
"""Timeout of collectives until the first step is over, since downloads, first reads and compilation precede it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks that this process belongs to, for any number of jobs.

    Attributes:
        collective: How the ranks communicate.
        on_cpu: Whether they train on CPUs.
    """

    collective: Collective
    on_cpu: bool


def join_world() -> World:
    """Join the world that the launcher describes. Every rank must call this.

    Ends the process with exit code 2 if the launcher uses DeepSpeed, or promised another number of ranks.
    """
    if launcher_switch_is_on(USE_DEEPSPEED_VARIABLE):
        _exit_with_config_error(DEEPSPEED_REFUSED.format("accelerate launch --use_deepspeed"))
    on_cpu = launcher_switch_is_on(USE_CPU_VARIABLE) or not torch.cuda.is_available()
    if error := environment_error(os.environ):
        _exit_with_config_error(error)
    PartialState(cpu=on_cpu, timeout=BUILD_TIMEOUT)
    collective = collectives.collective_for_world()
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised != collective.world_size:
        _exit_with_config_error(
            f"WORLD_SIZE must equal the number of ranks in the process group, got {promised} and "
            f"{collective.world_size}; on a CPU, start with ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu "
            "--num_processes N -m lrrunner"
        )
    defer_dynamo()
    return World(collective=collective, on_cpu=on_cpu)


def environment_error(environ: Mapping[str, str]) -> str:
    """What is wrong with variables that describe a world, left behind by a launcher; empty where nothing is.

    >>> environment_error({"WORLD_SIZE": "1"}), environment_error({"WORLD_SIZE": "2", **dict.fromkeys(RENDEZVOUS, "0")})
    ('', '')
    """
    world_size = environ.get("WORLD_SIZE", "1")
    if not world_size.isdecimal():
        return f"WORLD_SIZE must be a number of ranks, got {world_size}; unset it in the environment"
    missing = [name for name in RENDEZVOUS if name not in environ]
    if int(world_size) > 1 and missing:
        return (
            f"WORLD_SIZE must come with {', '.join(missing)}, as a launcher sets them, got WORLD_SIZE={world_size}; "
            "unset it in the environment, or start the ranks with launch.num_processes"
        )
    return ""


def leave_world() -> None:
    """Free what still refers to DDP, then destroy the process group: the other order aborts up to half of gloo runs."""
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def release_job_memory() -> None:
    """Free what a job held, so that the next one of this process finds the memory free.

    The frames that referred to the model must have returned.
    """
    if is_dynamo_loaded():
        torch.compiler.reset()  # compiled code refers to the model that it was compiled for
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def exit_now(code: int) -> NoReturn:
    """End the process without unwinding: a traceback's frames refer to DDP, which may abort after its process group."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_with_config_error(message: str) -> NoReturn:
    """End this rank, as every other one does; rank 0 prints the message."""
    if os.environ.get("RANK", "0") == "0":
        write_error(str(ConfigError([message])))
    exit_now(exit_codes.CONFIG_ERROR)
