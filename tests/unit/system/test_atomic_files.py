"""Readers and later processes see whole files only."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from lrrunner.system.atomic_files import atomic_file, remove_partial_files, write_bytes, write_json, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_it_is_complete(durable: bool, tmp_path: Path) -> None:
    """A reader that opened the old file reads all of the old one."""
    path = tmp_path / "status.json"
    write_text(path, "old")
    with path.open() as reader:
        with atomic_file(path, durable=durable) as file:
            file.write("né".encode())
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text(encoding="utf-8") == "né"
    assert [found.name for found in tmp_path.iterdir()] == ["status.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """A picture that cannot be drawn, a disk that is full."""
    path = tmp_path / "lr_sweep.png"
    write_bytes(path, b"old")
    with pytest.raises(TypeError, match="bytes-like"), atomic_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["lr_sweep.png"]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Also where an earlier one was not; other files follow the umask."""
    path = tmp_path / "job.json"
    write_json(path, {"a": 1})
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    write_json(path, {"token": "x"}, private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"token": "x"}


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    """And nothing else."""
    (tmp_path / ".a.pt.0af1.part").write_bytes(b"half")
    (tmp_path / "a.pt").write_bytes(b"whole")
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
