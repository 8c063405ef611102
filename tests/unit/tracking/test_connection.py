"""Which store is meant, and whether it refused or did not answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.system.redaction import Redactor
from lrrunner.tracking.connection import absolute_uri, anchored_uri, upload_failure


def test_a_sqlite_uri_stays_valid_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other URIs name a server, whose path is the server's."""
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("http://host:5000") == "http://host:5000"


def test_a_database_needs_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own message names no folder; a record of the URI needs none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"tracking.uri must lie in an existing directory, got {tmp_path}/none; "):
        absolute_uri("sqlite:///none/mlflow.db")
    assert anchored_uri("sqlite:///none/mlflow.db") == f"sqlite:///{tmp_path}/none/mlflow.db"


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (ConnectionRefusedError("[Errno 111] Connection refused"), False),
        (RuntimeError("(sqlite3.OperationalError) database is locked"), False),
        (RuntimeError("Max retries exceeded with url: /api"), False),
        (RuntimeError("INVALID_PARAMETER_VALUE: no such experiment"), True),
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
from lrrunner.tracking.connection import import_mlflow

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
