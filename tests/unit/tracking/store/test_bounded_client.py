"""No call to MLflow takes longer than it may, and its attempts stay off the terminal."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrrunner.system.processes.interrupt_counter import InterruptCounter
from lrrunner.tracking.store.bounded_client import BoundedClient, keep_attempts_off_the_terminal, within
from lrrunner.tracking.store.failures import is_unreachable

FOREVER_S = 600.0


class Client:
    """A client whose calls end when they may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.calls: list[object] = []

    def wait(self, value: object) -> object:
        assert self.may_end.wait(FOREVER_S)
        self.calls.append(value)
        return value

    def log_artifact(self, run_id: str, path: str) -> str:
        time.sleep(0.3)
        return path

    def fail(self) -> None:
        raise KeyError("refused")


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.may_end.set()


def test_a_call_returns_what_it_returns_and_raises_what_it_raises(client: Client) -> None:
    """The limit changes nothing else."""
    client.may_end.set()
    bounded = BoundedClient(client, FOREVER_S)
    assert bounded.wait(7) == 7
    with pytest.raises(KeyError, match="refused"):
        bounded.fail()
    with pytest.raises(AttributeError):
        bounded.nothing()


def test_a_call_that_hangs_is_given_up_and_the_next_one_waits_for_it(client: Client) -> None:
    """A lock of SQLite, a server that accepts and never answers: nothing in Python interrupts them."""
    bounded = BoundedClient(client, 0.1)
    for value in (1, 2):
        with pytest.raises(TimeoutError, match=r"^no answer within 0\.1 s$") as caught:
            bounded.wait(value)
        assert is_unreachable(caught.value), "the run directory keeps everything, and lrrunner-sync uploads it"
    client.may_end.set()
    while not client.calls:
        time.sleep(0.01)
    assert bounded.wait(3) == 3
    assert client.calls == [1, 3], "the second call was never made: a store is not asked twice at once"


def test_a_signal_ends_the_wait(client: Client) -> None:
    """A first Ctrl-C asks to stop; MLflow must not keep the command from it."""
    with InterruptCounter() as interrupts:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(InterruptedError):
            BoundedClient(client, FOREVER_S).wait(1)
        assert interrupts.count == 1


def test_a_file_may_take_longer_than_other_calls(client: Client, tmp_path: Path) -> None:
    """In proportion to its size."""
    file = tmp_path / "records.csv"
    file.write_bytes(b"x" * 5_000_000)
    assert BoundedClient(client, 0.1).log_artifact("run", str(file)) == str(file)


def test_attempts_are_logged_by_us_and_not_shown(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib3 reports each attempt with addresses of its own objects, MLflow its ten attempts to open a database."""
    for name in (
        "urllib3",
        "urllib3.connectionpool",
        "lrrunner",
        "lrrunner.tracking",
        "lrrunner.tracking.store.bounded_client",
    ):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)  # alembic's configuration disables loggers
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    keep_attempts_off_the_terminal()
    urllib3 = logging.getLogger("urllib3.connectionpool")
    with caplog.at_level(logging.INFO):
        within(FOREVER_S, lambda: urllib3.warning("Retrying (%s) after connection broken", "JitteredRetry(total=1)"))
        urllib3.warning("from the user's own thread")
    names = {(record.name, record.getMessage()) for record in caplog.records}
    assert names == {
        (
            "lrrunner.tracking.store.bounded_client",
            "urllib3.connectionpool: Retrying (JitteredRetry(total=1)) after connection broken",
        ),
        ("urllib3.connectionpool", "from the user's own thread"),
    }
