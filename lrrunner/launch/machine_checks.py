"""What of the section ``launch`` this machine cannot satisfy. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from lrrunner.config.schema import LaunchConfig
from lrrunner.system.output.terminal import counted

MAX_RANKS = 1024
"""Ranks that are started on one machine."""

MAX_FILE_CHARACTERS = 1 << 20

DEEPSPEED_REFUSED = (
    "the launcher must not use DeepSpeed, whose engine steps by itself, got {}; leave it out, and shard parameters "
    "with train.fsdp=true"
)


def machine_errors(launch: LaunchConfig, gpus: tuple[str, ...]) -> list[str]:
    """Errors of the section ``launch`` on this machine.

    Args:
        launch: The section.
        gpus: This machine's GPUs; empty: the ranks train on CPUs.
    """
    file = launch.config_file
    return [*(() if file is None else _config_file_errors(file)), *_rank_errors(launch, len(gpus))]


def crowding_warning(launch: LaunchConfig, *, num_gpus: int, num_cores: int) -> str:
    """What more ranks than CPU cores cost, in one line; empty where each has a core, or a GPU.

    >>> crowding_warning(LaunchConfig(num_processes=4), num_gpus=0, num_cores=2)
    '4 ranks on 2 CPU cores take turns; faster: launch.num_processes=2'
    """
    num_ranks = (launch.num_processes or 1) * launch.concurrent
    if num_gpus or launch.config_file is not None or num_ranks <= num_cores:
        return ""
    fewer = f"launch.num_processes={num_cores}" if launch.concurrent == 1 else "a lower launch.concurrent"
    return f"{counted(num_ranks, 'rank')} on {counted(num_cores, 'CPU core')} take turns; faster: {fewer}"


def _config_file_errors(file: str) -> Iterator[str]:
    rule = "launch.config_file must be a file of accelerate launch"
    path = Path(file)
    if not path.is_file():
        yield f"{rule}, got {file}; correct the path"
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as opened:
            text = opened.read(MAX_FILE_CHARACTERS)
        content = yaml.safe_load(text)
    except OSError as error:
        yield f"{rule} that can be read, got {file} ({error.strerror}); see its permissions"
    except (yaml.YAMLError, RecursionError):
        yield f"{rule}, in YAML, got {file}; write one with accelerate config"
    else:
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            yield f"{rule}, with keys and values, got {file}; write one with accelerate config"
        elif (num_machines := content.get("num_machines", 1)) != 1:
            yield (
                f"{rule} for one machine, got num_machines: {num_machines} in {file}; start the ranks of several "
                "machines with accelerate launch -m lrrunner, or with Slurm"
            )
        elif "DEEPSPEED" in text:
            yield DEEPSPEED_REFUSED.format(f"launch.config_file={file}")


def _rank_errors(launch: LaunchConfig, num_gpus: int) -> Iterator[str]:
    num_processes, concurrent = launch.num_processes or 1, launch.concurrent
    groups = "" if concurrent == 1 else f" x launch.concurrent={concurrent}"
    if num_gpus and launch.config_file is None and num_processes * concurrent > num_gpus:
        yield (
            f"launch.num_processes{groups} must be at most the {num_gpus} GPU(s) of this machine, got {num_processes}; "
            "ask for fewer, or train on CPUs with ACCELERATE_USE_CPU=1"
        )
    elif num_processes * concurrent > MAX_RANKS:
        yield f"launch.num_processes{groups} must be at most {MAX_RANKS} on a machine, got {num_processes}; lower it"
