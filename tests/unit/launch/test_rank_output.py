"""Output of ranks, from their pipes to their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lrrunner.launch.rank_output import RankOutputFiles, RankPipes
from lrrunner.system.output.redaction import Redactor


def test_lines_of_ranks_arrive_whole() -> None:
    """Also the last one of a rank that died while it wrote it."""
    received: list[tuple[int, str, str]] = []
    output = RankPipes(2, lambda rank, name, lines: received.extend((rank, name, line) for line in lines))
    try:
        writing = os.open(output.folder / "1.err", os.O_WRONLY)
        os.write(writing, b"first\nsec")
        output.read()
        assert received == [(1, "err", "first\n")]
        os.write(writing, b"ond\n50%\r100%")
        os.close(writing)
    finally:
        output.close()
    assert received == [(1, "err", "first\n"), (1, "err", "second\n"), (1, "err", "50%\n"), (1, "err", "100%\n")]
    assert not output.folder.exists()


@pytest.mark.parametrize("echoed", [True, False])
def test_output_is_kept_until_the_directory_exists_and_holds_no_secret(tmp_path: Path, echoed: bool) -> None:
    """Rank 0 makes the directory in stage B."""
    shown: list[tuple[str, str]] = []
    files = RankOutputFiles(
        tmp_path, Redactor(["canary-abc"]), echo=(lambda name, line: shown.append((name, line))) if echoed else None
    )
    files.write(0, "out", ["zero canary-abc\n"])
    files.write(1, "err", ["one canary-abc\n"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ranks").mkdir()
    files.flush()
    assert (tmp_path / "ranks" / "1.out").read_text() == "one ***\n"
    assert shown == ([("out", "zero ***\n")] if echoed else [])
    assert (tmp_path / "ranks" / "0.out").exists() != echoed


def test_a_rank_that_never_stops_printing_is_read_in_turns() -> None:
    """A supervisor that reads until there is nothing more would neither watch other ranks nor notice a Ctrl-C."""
    received: list[str] = []
    writing: list[int] = []

    def receive_and_print(rank: int, name: str, lines: Sequence[str]) -> None:
        received.extend(lines)
        assert len(received) < 1000, "read() does not return"
        os.write(writing[0], b"more\n")

    output = RankPipes(1, receive_and_print)
    try:
        writing.append(os.open(output.folder / "0.out", os.O_WRONLY))
        os.write(writing[0], b"first\n")
        output.read()
        assert received == ["first\n"]
    finally:
        output.close()
        os.close(writing[0])


def test_a_line_without_an_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would grow without limit; cut in two, it could show half a secret."""
    monkeypatch.setattr("lrrunner.launch.rank_output.MAX_LINE_BYTES", 10)
    received: list[str] = []
    output = RankPipes(1, lambda rank, name, lines: received.extend(lines))
    writing = os.open(output.folder / "0.out", os.O_WRONLY)
    try:
        for part in (b"0123456789abc", b"d" * 20, b"e\nshort\n"):
            os.write(writing, part)
            output.read()
    finally:
        output.close()
        os.close(writing)
    assert received == ["[a line of more than 262144 bytes is left out]\n", "short\n"]


def test_the_file_of_a_rank_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A print in a loop must not fill the disk."""
    monkeypatch.setattr("lrrunner.launch.rank_output.MAX_FILE_CHARACTERS", 12)
    (tmp_path / "ranks").mkdir()
    files = RankOutputFiles(tmp_path, Redactor())
    for _ in range(3):
        files.write(1, "out", ["12345\n", "1\n"])
    assert (tmp_path / "ranks" / "1.out").read_text() == "12345\n1\n[the rest is left out]\n"
