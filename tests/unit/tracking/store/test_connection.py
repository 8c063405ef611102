"""Which store is meant, and whether it refused or did not answer."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.system.output.redaction import Redactor
from lrrunner.tracking.store.connection import anchored_uri, connect
from lrrunner.tracking.store.failures import failure_reason, upload_failure

NO_JSON = "API request to endpoint /api/2.0/mlflow/experiments/get-by-name failed with error code"
"""What MLflow says of an answer that is no JSON: that of a gateway, or one that was cut."""


def test_a_sqlite_uri_stays_valid_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other URIs name a server, whose path is the server's."""
    monkeypatch.chdir(tmp_path)
    assert anchored_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert anchored_uri("http://host:5000") == "http://host:5000"


def test_a_database_needs_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own message names no folder; a record of the URI needs none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"tracking.uri must lie in an existing directory, got {tmp_path}/none; "):
        connect(uri="sqlite:///none/mlflow.db", experiment="x", redactor=Redactor())
    assert anchored_uri("sqlite:///none/mlflow.db") == f"sqlite:///{tmp_path}/none/mlflow.db"


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (ConnectionRefusedError("[Errno 111] Connection refused"), False),
        (RuntimeError("(sqlite3.OperationalError) database is locked"), False),
        (RuntimeError("Max retries exceeded with url: /api"), False),
        (RuntimeError("INVALID_PARAMETER_VALUE: no such experiment"), True),
        (RuntimeError(f"{NO_JSON} 404 != 200. Response body: ''"), False),
        (RuntimeError(f"{NO_JSON} 404 != 200. Response body: '{{\"error_c'"), False),
        (RuntimeError(f"{NO_JSON} 502 != 200. Response body: '<html>'"), False),
        (RuntimeError(f"{NO_JSON} 401 != 200. Response body: 'Unauthorized'"), True),
    ],
)
def test_a_store_that_does_not_answer_has_not_refused(error: Exception, is_refusal: bool) -> None:
    """lrrunner-sync is worth another attempt only in the first case."""
    assert upload_failure(error, Redactor()).is_refusal is is_refusal


def test_an_error_of_the_http_library_is_no_refusal() -> None:
    """MLflow wraps it in its own exception, with a text of its own."""
    requests = pytest.importorskip("requests")
    error = RuntimeError("API request failed")
    error.__cause__ = requests.exceptions.ReadTimeout()
    assert not upload_failure(error, Redactor()).is_refusal


def test_the_reason_is_one_line() -> None:
    """SQLAlchemy adds the statement and a link to its pages."""
    assert upload_failure(RuntimeError("no table\n[SQL: SELECT 1]"), Redactor()).reason == "no table"
    assert upload_failure(TimeoutError(), Redactor()).reason == "TimeoutError"


PROGRAM = """
import sys
from lrrunner.tracking.store.connection import import_mlflow

import_mlflow("sqlite:///mlflow.db", timeout_s=None)
from mlflow import MlflowClient
MlflowClient(tracking_uri="http://localhost:1")
print(*[name for name in {names} if name in sys.modules])
"""


def test_the_server_side_of_mlflow_is_not_imported() -> None:
    """It would cost seconds; MLflow's own ``__init__`` imports fastapi, which cannot be helped."""
    names = ("mlflow.server", "mlflow.pyfunc", "flask", "uvicorn", "gunicorn", "sklearn", "matplotlib", "torch")
    program = PROGRAM.format(names=names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


POOL = "HTTPConnectionPool(host='h', port=1): Max retries exceeded with url: /api"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"API request failed with exception {POOL} (Caused by NewConnectionError('<urllib3.HTTPConnection object "
            "at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused'))",
            "connection refused",
        ),
        (
            "HTTPConnectionPool(host='h', port=1): Max retries exceeded (Read timed out. (read timeout=1))",
            "no answer in time",
        ),
        (
            "HTTPSConnectionPool: Max retries exceeded (Failed to resolve 'h' ([Errno -2] Name or service not known))",
            "unknown host name",
        ),
        (
            f"{POOL} (ResponseError('too many 503 error responses'))",
            "server error 503",
        ),
        (
            f"{POOL} ('Connection aborted.', RemoteDisconnected('x'))",
            "broken connection",
        ),
        (f"{POOL} (something new)", "no answer"),
        ("(sqlite3.OperationalError) database is locked", "database is locked"),
        ("INVALID_PARAMETER_VALUE: no such experiment", "INVALID_PARAMETER_VALUE: no such experiment"),
    ],
)
def test_the_reason_is_plain_text(text: str, reason: str) -> None:
    """HTTP libraries print classes and addresses of their own, which help nobody on a terminal."""
    assert failure_reason(OSError(text), Redactor()) == reason


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "must name a file, got the directory {}; name a file in it"),
        (lambda path: os.mkfifo(path), "must name a regular file, got {}; choose another"),
        (
            lambda path: path.write_text("some notes, and no database at all"),
            "must name a usable store, got {}, which is no SQLite database; choose another name",
        ),
        (
            lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096),
            "must name a usable store, got {}, a damaged SQLite database (file is not a database); restore it, or "
            "choose another name",
        ),
    ],
)
def test_a_path_that_is_no_database_is_reported_at_once(
    make: Callable[[Path], object], problem: str, tmp_path: Path
) -> None:
    """MLflow tries it ten times, for 100 to 206 seconds."""
    path = tmp_path / "mlflow.db"
    make(path)
    with pytest.raises(ConfigError) as caught:
        connect(uri=f"sqlite:///{path}", experiment="x", redactor=Redactor())
    assert caught.value.errors == (f"tracking.uri {problem.format(path)}",)
    assert "mlflow" not in sys.modules or not (tmp_path / ".mlflow.db.lock").exists(), "it was not opened"


@pytest.mark.parametrize(
    ("forbidden", "problem"),
    [
        ("mlflow.db", "must name a database that can be read and written, got {}/mlflow.db; see its permissions"),
        ("", "must lie in a directory that can be written, got {}; choose another"),
    ],
)
def test_a_path_without_permission_is_reported_at_once(
    forbidden: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may do everything, so the answer of the system is replaced."""
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / forbidden)
    with pytest.raises(ConfigError) as caught:
        connect(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="x", redactor=Redactor())
    assert caught.value.errors == (f"tracking.uri {problem.format(tmp_path)}",)
