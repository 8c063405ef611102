"""The ledger survives whatever interrupts a batch."""

from __future__ import annotations

from pathlib import Path

from lrrunner.batch.ledger import Entry, append, latest, read
from lrrunner.results.run_state import RunState

FIRST = Entry(
    job=0, overrides=("model=mlp",), key="a", state=RunState.FAILED, cause="rank 1: killed by SIGKILL", seconds=3.5
)
SECOND = Entry(
    job=1, overrides=("model=cnn",), key="b", state=RunState.FINISHED, run_id="abc", run_dir="001", lr=1e-3,
    interval=(5e-4, 2e-3), verdict="ok", best_loss=0.3, seconds=2.0,
)  # fmt: skip


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    """One line a job."""
    append(tmp_path, FIRST)
    append(tmp_path, SECOND)
    assert read(tmp_path) == [FIRST, SECOND]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_the_last_line_of_a_job_counts(tmp_path: Path) -> None:
    """A failed job that a resumed batch repeats."""
    again = Entry(job=0, overrides=("model=mlp",), key="a", state=RunState.FINISHED, run_dir="000-2", seconds=4.0)
    for entry in (FIRST, SECOND, again):
        append(tmp_path, entry)
    assert latest(read(tmp_path)) == {"a": again, "b": SECOND}


def test_an_incomplete_line_is_skipped_and_spoils_no_other(tmp_path: Path) -> None:
    """The machine died while it was written."""
    append(tmp_path, FIRST)
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text() + '{"job": 1, "over')
    assert read(tmp_path) == [FIRST]
    append(tmp_path, SECOND)
    assert read(tmp_path) == [FIRST, SECOND]


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    """Before the first job has ended."""
    assert read(tmp_path) == []
