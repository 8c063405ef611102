"""Whose fault it was: read off what launchers and ranks leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrrunner.output import RankOutput
from lrrunner.redaction import Redactor
from lrrunner.supervised_job import OutputFiles
from lrrunner.supervisor import _ROOT_CAUSE, _place

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
    output = RankOutput(2, lambda rank, name, line: heard.append((rank, name, line)))
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
    files.take(0, "out", "zero canary-abc\n")
    files.take(1, "err", "one canary-abc\n")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ranks").mkdir()
    files.flush()
    assert (tmp_path / "ranks" / "1.out").read_text() == "one ***\n"
    assert shown == ([("out", "zero ***\n")] if echoed else [])
    assert (tmp_path / "ranks" / "0.out").exists() != echoed
