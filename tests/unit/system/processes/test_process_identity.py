"""Identities of processes are unique."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lrrunner.system.processes.process_identity import is_alive, is_gone, pid_of, process_identity


def test_a_running_process_is_alive_and_a_finished_one_is_not() -> None:
    """Runs of processes that are gone are closed; those of running ones must not be."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert is_alive(identity)
    child.communicate(b"\n")
    assert not is_alive(identity)
    assert is_gone(identity)
    assert is_alive(process_identity())
    assert not is_gone(process_identity())


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


OTHER_BOOT = "00000000-0000-0000-0000-000000000000"


def identity_with(**changed: str) -> str:
    """The identity of a process of ours that has ended, with some fields changed."""
    boot, pid, _, namespace, inode, machine, uid = process_identity().split(":")
    fields = {
        "boot": boot,
        "pid": pid,
        "start": "1",
        "namespace": f"{namespace}:{inode}",
        "machine": machine,
        "uid": uid,
    }
    return ":".join((fields | changed).values())


def test_only_what_provably_was_ours_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live run of another machine with the same host name was ended as KILLED.

    Nor can this user see the processes of others, or of other containers, everywhere.
    """
    host = "pid:[4026531836]"
    monkeypatch.setattr("lrrunner.system.processes.process_identity._pid_namespace", lambda: host)
    monkeypatch.setattr("lrrunner.system.processes.process_identity._machine", lambda: "0" * 16)
    assert is_gone(identity_with())
    assert is_gone(identity_with(boot=OTHER_BOOT)), "this machine has started again since"
    assert not is_gone(identity_with(uid=str(os.getuid() + 1)))
    assert not is_gone(identity_with(boot=OTHER_BOOT, machine="1" * 16))
    assert not is_gone(identity_with(boot=OTHER_BOOT, machine="?"))
    assert not is_gone(identity_with(namespace="pid:[7]"))
    assert not is_gone(identity_with(boot=OTHER_BOOT, namespace="pid:[7]"))
    assert not is_gone(identity_with().rpartition(":")[0].rpartition(":")[0]), "of an earlier version, without the user"


def test_a_machine_without_an_id_proves_nothing_about_an_earlier_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two such machines have the same unknown id."""
    monkeypatch.setattr("lrrunner.system.processes.process_identity._machine", lambda: "?")
    assert not is_gone(identity_with(boot=OTHER_BOOT, machine="?", namespace="pid:[4026531836]"))


@pytest.mark.parametrize(
    "odd", ["", "x", ":", "a:b:c", "a:b:c:d:e:f:g", "::::", "?:1:?:?", "\x00", "1" * 10_000, None, 7, []]
)
def test_an_odd_identity_is_none(odd: object) -> None:
    """Everybody can write to a store and to TMPDIR: an odd value ended every later start with a traceback."""
    assert not is_alive(odd)
    assert not is_gone(odd)
    assert pid_of(odd) is None
