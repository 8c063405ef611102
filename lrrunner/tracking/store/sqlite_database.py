"""The SQLite database of an MLflow store, checked before MLflow opens it: MLflow tries a wrong path for minutes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from lrrunner.errors import ConfigError

SCHEME = "sqlite:///"
HEADER = b"SQLite format 3\0"
CHECK_WITHIN_S = 1.0
LOCK_POLL_S = 0.05

NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "fuse.sshfs")

logger = logging.getLogger(__name__)


def database_path(uri: str) -> Path:
    """The file of a database.

    >>> str(database_path("sqlite:////data/mlflow.db?timeout=5"))
    '/data/mlflow.db'
    """
    return Path(uri.removeprefix(SCHEME).partition("?")[0])


def check_database(path: Path) -> None:
    """Check that a database can be opened and written, or made.

    Raises:
        ConfigError: it cannot.
    """
    problem = _problem(path)
    if problem is not None:
        raise ConfigError([problem])


def _problem(path: Path) -> str | None:
    """Why a database cannot be used."""
    folder = path.parent
    if not folder.is_dir():
        return f"tracking.uri must lie in an existing directory, got {folder}; create it"
    if path.is_dir():
        return f"tracking.uri must name a file, got the directory {path}; name a file in it"
    if path.exists() and not path.is_file():
        return f"tracking.uri must name a regular file, got {path}; choose another"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return f"tracking.uri must name a database that can be read and written, got {path}; see its permissions"
    if not os.access(folder, os.W_OK | os.X_OK):  # also for an existing one: its journal is written beside it
        return f"tracking.uri must lie in a directory that can be written, got {folder}; choose another"
    return _content_problem(path) if path.exists() else None


def _content_problem(path: Path) -> str | None:
    """Why a file that can be opened is no database."""
    wrong = f"tracking.uri must name a usable store, got {path}"
    try:
        with path.open("rb") as file:
            header = file.read(len(HEADER))
        if header and header != HEADER:
            return f"{wrong}, which is no SQLite database; choose another name"
        schema_revision(path)
    except sqlite3.OperationalError:  # it is locked now: MLflow waits for it, within its own limits
        return None
    except (OSError, sqlite3.Error) as error:
        return f"{wrong}, a damaged SQLite database ({error}); restore it, or choose another name"
    return None


def schema_revision(path: Path) -> str | None:
    """The revision of the tables that MLflow has made in a database; None if there are none."""
    address = f"file:{path.as_posix().replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=CHECK_WITHIN_S)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if "alembic_version" not in tables:
            return None
        row = connection.execute("select version_num from alembic_version").fetchone()
    return None if row is None else str(row[0])


def warn_of_migration(path: Path, newest: str) -> None:
    """Warn before MLflow migrates an older database, which it does without asking."""
    with contextlib.suppress(OSError, sqlite3.Error):
        found = schema_revision(path) if path.exists() else None
        if found not in (None, newest):
            logger.warning(
                "the MLflow database %s has the schema %s of another version of MLflow; this one, with schema %s, may "
                "migrate it in place, and the other one cannot open it after that: keep a copy",
                *(path, found, newest),
            )


def warn_of_network(path: Path) -> None:
    """Warn of a file system on which SQLite's locks do not hold."""
    kind = file_system(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        logger.warning(
            "the MLflow database %s is on a network file system (%s), where SQLite may lose data when two processes "
            "write; use an MLflow server, or a local path in tracking.uri",
            *(path, kind),
        )


def file_system(folder: Path, *, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Kind of the file system that a folder is on, as Linux names it; empty where that is not known."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    places = {fields[1].replace("\\040", " "): fields[2] for fields in lines if len(fields) > 2}
    return next((places[str(each)] for each in (folder, *folder.parents) if str(each) in places), "")


@contextlib.contextmanager
def database_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold a lock beside a database while it may be made: two processes that make its tables at once both fail.

    Whoever can write to the directory can take it, with any TMPDIR. Where there can be none, that is said.

    Raises:
        TimeoutError: another process holds it for longer.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        descriptor = _opened(file)
    except OSError as error:
        _warn_without_lock(path, file, error)
        yield
        return
    try:
        _acquire(descriptor, path, file, time.monotonic() + timeout_s)
        yield
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """The lock file; those who can write to its directory can write to it."""
    mode = file.parent.stat().st_mode & 0o666
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return os.open(file, os.O_RDWR | os.O_CLOEXEC)
    os.fchmod(descriptor, mode)
    return descriptor


def _acquire(descriptor: int, path: Path, file: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process holds {file}") from None
            time.sleep(LOCK_POLL_S)
        except OSError as error:
            _warn_without_lock(path, file, error)
            return
        else:
            return


def _warn_without_lock(path: Path, file: Path, error: OSError) -> None:
    if not path.exists():
        logger.warning(
            "no lock can be held in %s (%s): until the MLflow database exists, start one run at a time",
            *(file, error.strerror),
        )
