"""What of the section ``launch`` this machine cannot satisfy. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lrrunner.config.schema import LaunchConfig

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
    return [*(() if file is None else _config_file_errors(file)), *_gpu_errors(launch, len(gpus))]


def _config_file_errors(file: str) -> Iterator[str]:
    if not Path(file).is_file():
        yield f"launch.config_file must be a file of accelerate launch, got {file}; correct the path"
    elif "DEEPSPEED" in Path(file).read_text(encoding="utf-8", errors="replace"):
        yield DEEPSPEED_REFUSED.format(f"launch.config_file={file}")


def _gpu_errors(launch: LaunchConfig, num_gpus: int) -> Iterator[str]:
    num_processes, concurrent = launch.num_processes or 1, launch.concurrent
    if num_gpus and launch.config_file is None and num_processes * concurrent > num_gpus:
        groups = "" if concurrent == 1 else f" x launch.concurrent={concurrent}"
        yield (
            f"launch.num_processes{groups} must be at most the {num_gpus} GPU(s) of this machine, got {num_processes}; "
            "ask for fewer, or train on CPUs with ACCELERATE_USE_CPU=1"
        )
