"""A worker group of one rank that loads no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrrunner.launch.mailbox import JobMessage
from lrrunner.launch.rank_command import RankPlan
from lrrunner.launch.worker_group import WorkerGroup
from lrrunner.results.run_state import JobResult, RunState

ROOT = Path(__file__).resolve().parents[3]


def started(tmp_path: Path, rank_program: str) -> WorkerGroup:
    plan = RankPlan(num_processes=1, rank_program=rank_program)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return WorkerGroup(plan, tmp_path / "mailbox", environ=environ, sink=lambda *output: None)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[WorkerGroup]:
    """A started group; closed, it leaves nothing."""
    group = started(tmp_path, "tests.unit.launch.stub_rank")
    try:
        yield group
    finally:
        group.close()
    assert not group.is_alive
    assert not (tmp_path / "mailbox").exists()


def start(group: WorkerGroup, *, timeout_s: float = 60, **config: Any) -> None:
    group.start_job(JobMessage(number=group.next_number, config=config), timeout_s=timeout_s)


def result_of(group: WorkerGroup) -> JobResult:
    deadline = time.monotonic() + 60
    while (result := group.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def test_a_group_runs_job_after_job(group: WorkerGroup) -> None:
    """A configuration error and an interrupted job leave it intact."""
    start(group, stub="finish")
    assert result_of(group) == JobResult(state=RunState.FINISHED, exit_code=0)
    start(group, stub="finish", exit_code=2)
    assert result_of(group) == JobResult(state=RunState.FAILED, exit_code=2, cause="mine")
    start(group, stub="finish", exit_code=143)
    assert result_of(group) == JobResult(state=RunState.KILLED, exit_code=143, cause="interrupted")
    assert group.is_alive


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [("kill", "rank 0: killed by SIGKILL"), ("exit", "rank 0: ended with exit code 3 without reporting a cause")],
)
def test_a_rank_that_dies_is_named(group: WorkerGroup, behaviour: str, cause: str) -> None:
    """It cannot report anything itself."""
    start(group, stub=behaviour)
    assert result_of(group) == JobResult(state=RunState.FAILED, exit_code=1, cause=cause, is_reported=False)
    assert not group.is_alive


def test_a_rank_that_hangs_is_named_with_its_position(group: WorkerGroup) -> None:
    """The position leads to the cause."""
    start(group, stub="hang", timeout_s=2)
    cause = result_of(group).cause or ""
    assert cause.startswith("rank 0: no step for 2 s, at ")
    assert cause.endswith(" in run")


def test_ranks_that_do_not_start_show_the_last_line_of_their_output(tmp_path: Path) -> None:
    """Python's own error, say."""
    group = started(tmp_path, "tests.no_such_program")
    try:
        start(group, stub="finish")
        cause = result_of(group).cause or ""
    finally:
        group.close()
    assert cause.startswith("the ranks did not start: ")
    assert cause.endswith("No module named tests.no_such_program")


def test_a_job_that_is_interrupted_before_it_begins_is_stopped(group: WorkerGroup) -> None:
    """There is nothing to save."""
    start(group, stub="hang")
    group.interrupt(signal.SIGTERM)
    result = result_of(group)
    assert (result.state, result.exit_code, result.cause) == (RunState.KILLED, 143, "stopped before it could save")
