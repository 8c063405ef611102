"""The database's lock, its file system and its schema."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.tracking.store.sqlite_database import (
    database_lock,
    database_path,
    file_system,
    schema_revision,
    warn_of_migration,
    warn_of_network,
)


def test_a_second_process_waits_for_the_lock_whatever_its_temporary_folder_is(tmp_path: Path) -> None:
    """The lock was in TMPDIR: two users, or two TMPDIRs, made the tables at once, and both failed (2 of 2)."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom lrrunner.tracking.store.sqlite_database import database_lock\n"
        "try:\n    with database_lock(Path(sys.argv[1]), timeout_s=0.2): print('held')\n"
        "except TimeoutError: print('waited')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "mlflow.db")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with database_lock(tmp_path / "mlflow.db", timeout_s=1):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "waited\n"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "held\n"


def test_whoever_can_write_to_the_directory_can_take_the_lock(tmp_path: Path) -> None:
    """Whatever the umask of the one who took it first."""
    tmp_path.chmod(0o777)
    with database_lock(tmp_path / "mlflow.db", timeout_s=1):
        pass
    assert stat.S_IMODE((tmp_path / ".mlflow.db.lock").stat().st_mode) == 0o666


def test_where_no_lock_can_be_held_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only where it matters: for a database that does not exist yet."""
    (tmp_path / ".mlflow.db.lock").mkdir()
    with database_lock(tmp_path / "mlflow.db", timeout_s=1):
        pass
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        f"no lock can be held in {tmp_path}/.mlflow.db.lock (Is a directory): until the MLflow database exists, start "
        "one run at a time"
    )
    caplog.clear()
    (tmp_path / "mlflow.db").touch()
    with database_lock(tmp_path / "mlflow.db", timeout_s=1):
        pass
    assert caplog.records == []


MOUNTS = "overlay / overlay rw 0 0\nhost:/home /home nfs4 rw 0 0\ntmpfs /home/my\\040own tmpfs rw 0 0\n"


def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(tmp_path: Path) -> None:
    """As /proc/self/mounts lists them."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    found = [file_system(Path(folder), mounts=mounts) for folder in ("/", "/home/ann", "/home/my own/x", "/homes")]
    assert found == ["overlay", "nfs4", "tmpfs", "overlay"]
    assert file_system(tmp_path, mounts=tmp_path / "none") == ""


def test_a_database_on_a_network_file_system_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's locks do not hold there."""
    for kind in ("nfs4", "ext4"):
        monkeypatch.setattr("lrrunner.tracking.store.sqlite_database.file_system", lambda folder, kind=kind: kind)
        warn_of_network(Path("/home/ann/mlflow.db"))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "the MLflow database /home/ann/mlflow.db is on a network file system (nfs4), where SQLite"
    )


def test_an_older_database_is_named_before_mlflow_migrates_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does so without asking, and the version that made the database cannot open it any more."""
    caplog.set_level(logging.WARNING)
    path = tmp_path / "a?b%c.db"
    warn_of_migration(path, "new")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        warn_of_migration(path, "new")
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('old')")
        connection.commit()
    assert schema_revision(path) == "old"
    warn_of_migration(path, "old")
    assert caplog.records == []
    warn_of_migration(path, "new")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "has the schema old of another version of MLflow; this one, with schema new, may migrate it" in message


def test_the_path_of_a_uri_is_that_of_its_file() -> None:
    """SQLAlchemy takes options after a question mark."""
    assert database_path("sqlite:////data/a.db?timeout=3") == Path("/data/a.db")
