"""Identities of processes are unique."""

from __future__ import annotations

import os
import subprocess
import sys

from lrrunner.system.process_identity import is_alive, process_identity


def test_a_running_process_is_alive_and_a_finished_one_is_not() -> None:
    """Runs of processes that are gone are closed; those of running ones must not be."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert is_alive(identity)
    child.communicate(b"\n")
    assert not is_alive(identity)
    assert is_alive(process_identity())


def test_the_same_number_started_at_another_time_is_another_process() -> None:
    """Process ids are used again."""
    boot, pid, start, namespace = process_identity().split(":", 3)
    assert pid == str(os.getpid())
    assert not is_alive(f"{boot}:{pid}:{int(start) + 1}:{namespace}")


def test_a_process_of_another_container_is_left_alone() -> None:
    """Its process id is meaningless here, so it may be alive."""
    boot, pid, start, _ = process_identity().split(":", 3)
    assert is_alive(f"{boot}:{pid}:{start}:pid:[1]")


def test_a_process_from_before_the_last_boot_is_gone() -> None:
    """After the machine's death, the next start repairs what it left."""
    _, pid, start, namespace = process_identity().split(":", 3)
    assert not is_alive(f"00000000-0000-0000-0000-000000000000:{pid}:{start}:{namespace}")
