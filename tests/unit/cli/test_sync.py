"""``lrrunner-sync``: what goes wrong is one line for each directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.cli import sync


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("no answer within 4 s"), "no answer within 4 s"),
        (RuntimeError("HTTPConnectionPool: Max retries exceeded (Connection refused)"), "connection refused"),
    ],
)
def test_a_store_that_fails_in_the_middle_is_one_line_and_the_next_directory_follows(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its libraries raise what they like; the soak got a traceback for a call that took too long."""

    def upload(directory: Path, uri: str | None) -> list[str]:
        if directory.name == "first":
            raise error
        return [f"{directory} uploaded"]

    monkeypatch.setattr(sync, "_sync", upload)
    assert sync.run(["first", "second"]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"lrrunner-sync: first: MLflow does not answer ({reason}); try again later\n"
    assert shown.out == "second uploaded\n"


def test_an_error_of_our_own_is_not_taken_for_the_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be hidden, and tried again for ever."""

    def upload(directory: Path, uri: str | None) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(sync, "_sync", upload)
    with pytest.raises(ZeroDivisionError):
        sync.run(["first"])


def test_its_help_is_text_for_users(capsys: pytest.CaptureFixture[str]) -> None:
    """The docstring of a module, backquotes included, explains a module; an example is worth more than both."""
    with pytest.raises(SystemExit):
        sync.run(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: lrrunner-sync [-h] [--uri URI] directory [directory ...]\n")
    assert "example:\n  lrrunner-sync runs/" in text
    assert "``" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_interrupted_upload_is_repeated_by_the_same_command(tmp_path: Path) -> None:
    """KeyboardInterrupt came with a traceback of MLflow's client."""
    program = (
        "import os, signal, sys, time; from lrrunner.cli import sync; "
        "sync._sync = lambda *_: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)); sync.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "runs/a"], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout == "interrupted:  the upload is not complete\ngo on with:   lrrunner-sync runs/a\n"
