"""Folders in TMPDIR: only this user can enter them, and those of dead processes are removed."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from lrrunner.system import temporary_folders
from lrrunner.system.processes.process_identity import process_identity
from lrrunner.system.temporary_folders import new_private_folder, remove_private_folder, remove_stale_folders

OWN_NAME = f"lrrunner-{os.getuid()}"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def dead_owner() -> str:
    """The content of owner.json of a process of this user that has ended."""
    fields = process_identity().split(":")
    fields[2] = "1"
    return json.dumps({"process": ":".join(fields)})


def test_a_folder_is_inside_of_the_users_own(temporary: Path) -> None:
    """Nobody else may read jobs, which hold secrets, nor place files that would be taken for ours."""
    folder = new_private_folder("mailbox-")
    assert folder.parent == temporary / OWN_NAME
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "owner.json").stat().st_mode) == 0o600
    remove_private_folder(folder)
    assert list(temporary.iterdir()) == []


def test_folders_of_dead_processes_are_removed_and_no_others(temporary: Path) -> None:
    """A supervisor that was killed leaves jobs and named pipes."""
    names = ("mine", "dead", "odd", "no-mapping", "number", "new", "old")
    folders = {name: new_private_folder(f"{name}-") for name in names}
    os.mkfifo(folders["dead"] / "0.out")
    contents = {"dead": dead_owner(), "odd": '{"process": "a:b"}', "no-mapping": "[1", "number": '{"process": 5}'}
    for name, content in contents.items():
        (folders[name] / "owner.json").write_text(content)
    for name in ("new", "old"):
        (folders[name] / "owner.json").unlink()
    os.utime(folders["old"], (0, 0))
    remove_stale_folders()
    left = {name for name, folder in folders.items() if folder.exists()}
    assert left == {"mine", "odd", "no-mapping", "number", "new"}


def test_what_others_have_placed_is_not_touched(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any local user can write to /tmp: an odd file there ended every supervised start of everybody."""
    for name in ("lrrunner-set-x", "lrrunner-mailbox-x", "lrrunner-output-x"):
        (temporary / name).mkdir()
        (temporary / name / "owner.json").write_text('{"process": "odd", "host": 1}')
    theirs = temporary / OWN_NAME / "mailbox-x"
    theirs.mkdir(parents=True)
    (theirs / "owner.json").write_text(dead_owner())
    monkeypatch.setattr(temporary_folders, "_is_own", lambda folder: False)
    remove_stale_folders()
    assert theirs.exists()
    folder = new_private_folder("mailbox-")
    assert folder.parent.name.startswith(f"{OWN_NAME}-"), "somebody else has taken the name"


def test_a_link_to_another_folder_is_not_followed(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It would have the folder that it names removed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "owner.json").write_text(dead_owner())
    folder = new_private_folder("mailbox-")
    (folder.parent / "link").symlink_to(elsewhere)
    remove_stale_folders()
    assert (elsewhere / "owner.json").exists()
