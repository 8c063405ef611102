"""Credentials go to servers that their owner has named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.tracking import sync_run
from lrrunner.tracking.sync_run import check_credentials

TOKEN = {"MLFLOW_TRACKING_TOKEN": "t"}
SERVER = "https://mlflow.example.org:5000/base"


@pytest.fixture(autouse=True)
def no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for MLflow's own file of credentials, where there is none."""
    monkeypatch.setattr(sync_run, "CREDENTIALS_FILE", tmp_path / "credentials")
    return tmp_path / "credentials"


def test_a_server_that_only_a_run_directory_names_gets_no_credentials(tmp_path: Path) -> None:
    """A run directory may come from anybody; MLflow sends the token to whatever it names."""
    with pytest.raises(ConfigError) as caught:
        check_credentials(SERVER, tmp_path, TOKEN | {"MLFLOW_TRACKING_URI": "https://other.example.org"})
    assert caught.value.errors == (
        f"--uri must be given to send MLFLOW_TRACKING_TOKEN to {SERVER}, which {tmp_path} names and "
        f"MLFLOW_TRACKING_URI does not; if you trust it, add --uri {SERVER}",
    )


@pytest.mark.parametrize("known", ["http://mlflow.example.org:5000", "https://mlflow.example.org", ""])
def test_another_scheme_or_port_is_another_server(known: str, tmp_path: Path) -> None:
    """A token over http is no secret any more."""
    with pytest.raises(ConfigError):
        check_credentials(SERVER, tmp_path, TOKEN | {"MLFLOW_TRACKING_URI": known})


def test_mlflows_file_of_credentials_counts(tmp_path: Path, no_file: Path) -> None:
    """It holds a user and a password."""
    no_file.touch()
    with pytest.raises(ConfigError, match=f"to send {no_file} to"):
        check_credentials(SERVER, tmp_path, {})


@pytest.mark.parametrize(
    ("uri", "environ"),
    [
        (SERVER, {}),
        (SERVER, TOKEN | {"MLFLOW_TRACKING_URI": "https://mlflow.example.org:5000"}),
        ("sqlite:////data/mlflow.db", TOKEN),
        ("databricks", TOKEN),
    ],
)
def test_what_its_owner_has_named_is_trusted(uri: str, environ: dict[str, str], tmp_path: Path) -> None:
    """So is a store to which nothing is sent."""
    check_credentials(uri, tmp_path, environ)
