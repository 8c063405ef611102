"""What this machine cannot do is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.launch.machine_checks import crowding_warning, machine_errors
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


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "warning"),
    [
        (("launch.num_processes=2",), 0, ""),
        (("launch.num_processes=4",), 0, "4 ranks on 2 CPU cores take turns; faster: launch.num_processes=2"),
        (("launch.num_processes=4",), 4, ""),
        (
            ("launch.num_processes=2", "launch.concurrent=2"),
            0,
            "4 ranks on 2 CPU cores take turns; faster: a lower launch.concurrent",
        ),
    ],
)
def test_more_ranks_than_cores_are_warned_of(overrides: tuple[str, ...], num_gpus: int, warning: str) -> None:
    """The sweep is right, but slower than with fewer ranks: the curve depends on the global batch alone."""
    launch = composed(*overrides, world_size=None).launch
    assert crowding_warning(launch, num_gpus=num_gpus, num_cores=2) == warning


def test_a_launch_file_for_deepspeed_is_refused(tmp_path: Path) -> None:
    """Its engine steps by itself, whatever the sweep sets; the message names the way out."""
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: DEEPSPEED\n")
    launch = composed("launch.num_processes=2", f"launch.config_file={file}", world_size=None).launch
    assert machine_errors(launch, ()) == [
        f"the launcher must not use DeepSpeed, whose engine steps by itself, got launch.config_file={file}; leave it "
        "out, and shard parameters with train.fsdp=true"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("root:x:0:0:root:/root:/bin/bash\n", ", with keys and values, got {}; write one with accelerate config"),
        ("a: [", ", in YAML, got {}; write one with accelerate config"),
        ("", ", with keys and values, got {}; write one with accelerate config"),
    ],
)
def test_a_file_that_is_not_for_accelerate_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    """Accelerate would fail on each rank, with a traceback that does not name the key."""
    file = tmp_path / "passwd"
    file.write_text(content)
    launch = composed("launch.num_processes=2", f"launch.config_file={file}", world_size=None).launch
    expected = f"launch.config_file must be a file of accelerate launch{problem.format(file)}"
    assert machine_errors(launch, ()) == [expected]


def test_more_ranks_than_a_machine_can_hold_are_refused() -> None:
    """A slip of the finger must not start ten thousand processes."""
    launch = composed("launch.num_processes=128", "data.global_batch_size=128", "launch.concurrent=9", world_size=None)
    assert machine_errors(launch.launch, ()) == [
        "launch.num_processes x launch.concurrent=9 must be at most 1024 on a machine, got 128; lower it"
    ]
