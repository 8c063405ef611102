"""``lrrunner-sync``: what goes wrong is one line for each directory."""

from __future__ import annotations

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
