"""Whose fault it was: read off what launchers and ranks leave behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lrrunner.launch.job import OutputFiles
from lrrunner.launch.rank_output import RankOutput
from lrrunner.launch.worker_group import _ROOT_CAUSE, _place
from lrrunner.system.redaction import Redactor

LAUNCHER_WORDS = """
lrrunner.ranks FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_03:31:36
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 101)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_03:31:35
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 102)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 102
"""

STACK = """Thread 0x00007f0000000001 (most recent call first):
  File "/site/lrrunner/signals.py", line 107 in _watch
  File "/lib/threading.py", line 982 in run

Current thread 0x00007f0000000002 (most recent call first):
  File "/home/ann/mine.py", line 12 in forward
  File "/site/torch/nn/modules/module.py", line 1775 in _call_impl
"""


def test_the_launchers_root_cause_is_read() -> None:
    """Not its other failures: a survivor fails too, a moment later."""
    found = _ROOT_CAUSE.search(LAUNCHER_WORDS)
    assert found is not None
    assert found.groups() == ("1", "-9")


def test_the_main_thread_says_where_a_rank_stands() -> None:
    """It comes last; a watching thread is no place."""
    assert _place(STACK) == ", at /home/ann/mine.py:12 in forward"
    assert _place("") == ""


def test_lines_of_ranks_arrive_whole() -> None:
    """Also the last one of a rank that died in the middle of it."""
    heard: list[tuple[int, str, str]] = []
    output = RankOutput(2, lambda rank, name, lines: heard.extend((rank, name, line) for line in lines))
    try:
        writing = os.open(output.folder / "1.err", os.O_WRONLY)
        os.write(writing, b"first\nsec")
        output.read()
        assert heard == [(1, "err", "first\n")]
        os.write(writing, b"ond\n50%\r100%")
        os.close(writing)
    finally:
        output.close()
    assert heard == [(1, "err", "first\n"), (1, "err", "second\n"), (1, "err", "50%\n"), (1, "err", "100%\n")]
    assert not output.folder.exists()


@pytest.mark.parametrize("echoed", [True, False])
def test_what_ranks_say_waits_for_the_directory_and_keeps_no_secret(tmp_path: Path, echoed: bool) -> None:
    """Rank 0 makes the directory in stage B; until then lines wait."""
    shown: list[tuple[str, str]] = []
    files = OutputFiles(
        tmp_path, Redactor(["canary-abc"]), echo=(lambda name, line: shown.append((name, line))) if echoed else None
    )
    files.take(0, "out", ["zero canary-abc\n"])
    files.take(1, "err", ["one canary-abc\n"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ranks").mkdir()
    files.flush()
    assert (tmp_path / "ranks" / "1.out").read_text() == "one ***\n"
    assert shown == ([("out", "zero ***\n")] if echoed else [])
    assert (tmp_path / "ranks" / "0.out").exists() != echoed


def test_a_rank_that_never_stops_talking_is_read_in_turns() -> None:
    """A supervisor that reads until there is nothing more would watch nobody else, nor hear a Ctrl-C."""
    heard: list[str] = []
    writing: list[int] = []

    def hear_and_talk(rank: int, name: str, lines: Sequence[str]) -> None:
        heard.extend(lines)
        assert len(heard) < 1000, "read() does not return"
        os.write(writing[0], b"more\n")

    output = RankOutput(1, hear_and_talk)
    try:
        writing.append(os.open(output.folder / "0.out", os.O_WRONLY))
        os.write(writing[0], b"first\n")
        output.read()
        assert heard == ["first\n"]
    finally:
        output.close()
        os.close(writing[0])


def test_a_line_without_an_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would grow for ever; cut in two, it could show half a secret."""
    monkeypatch.setattr("lrrunner.launch.rank_output.MAX_LINE", 10)
    heard: list[str] = []
    output = RankOutput(1, lambda rank, name, lines: heard.extend(lines))
    writing = os.open(output.folder / "0.out", os.O_WRONLY)
    try:
        for part in (b"0123456789abc", b"d" * 20, b"e\nshort\n"):
            os.write(writing, part)
            output.read()
    finally:
        output.close()
        os.close(writing)
    assert heard == ["[a line of more than 262144 bytes is left out]\n", "short\n"]


def test_the_file_of_a_rank_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A print in a loop must not fill the disk."""
    monkeypatch.setattr("lrrunner.launch.job.MAX_FILE", 12)
    (tmp_path / "ranks").mkdir()
    files = OutputFiles(tmp_path, Redactor())
    for _ in range(3):
        files.take(1, "out", ["12345\n", "1\n"])
    assert (tmp_path / "ranks" / "1.out").read_text() == "12345\n1\n[the rest is left out]\n"
