"""What this machine cannot do is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

from lrrunner.launch.machine_checks import machine_errors
from tests.composing import composed


def test_more_ranks_than_gpus_are_refused() -> None:
    """Before anything starts, with the way out."""
    launch = composed("launch.num_processes=2", "launch.concurrent=3", world_size=None).launch
    assert machine_errors(launch, ("0", "1", "2", "3")) == [
        "launch.num_processes x launch.concurrent=3 must be at most the 4 GPU(s) of this machine, got 2; "
        "ask for fewer, or train on CPUs with ACCELERATE_USE_CPU=1"
    ]
    assert machine_errors(launch, tuple("012345")) == []
    assert machine_errors(launch, ()) == []


def test_a_launch_file_for_deepspeed_is_refused(tmp_path: Path) -> None:
    """Its engine steps by itself, whatever the sweep sets; the message names the way out."""
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: DEEPSPEED\n")
    launch = composed("launch.num_processes=2", f"launch.config_file={file}", world_size=None).launch
    assert machine_errors(launch, ()) == [
        f"the launcher must not use DeepSpeed, whose engine steps by itself, got launch.config_file={file}; leave it "
        "out, and shard parameters with train.fsdp=true"
    ]
