"""Files between a supervisor and its ranks."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lrrunner.launch.mailbox import Heartbeat, HeartbeatWriter, JobMailbox, JobMessage, RankOutcome
from lrrunner.records import Progress
from lrrunner.system.processes.process_identity import process_identity


def new_mailbox(tmp_path: Path) -> JobMailbox:
    mailbox = JobMailbox(tmp_path / "mailbox")
    mailbox.create()
    return mailbox


def test_a_job_arrives_as_it_was_posted(tmp_path: Path) -> None:
    """Only its owner can read it: it holds the secrets of the configuration."""
    mailbox = new_mailbox(tmp_path)
    message = JobMessage(
        number=3, config={"model": {"token": "abc"}}, arguments=["--config-dir", "x", "a=1"], run_id="r"
    )
    mailbox.post(message)
    assert mailbox.next_job(3, orphaned=lambda: False) == message
    (path,) = (tmp_path / "mailbox" / "jobs").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    mailbox.withdraw(3)
    assert list((tmp_path / "mailbox" / "jobs").iterdir()) == []


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    """Old outcomes would be taken for new ones: a resumed batch once finished all its jobs at once."""
    mailbox = new_mailbox(tmp_path)
    with pytest.raises(FileExistsError):
        mailbox.create()


def test_ranks_stop_waiting_at_the_end_or_when_orphaned(tmp_path: Path) -> None:
    """No rank waits for ever."""
    mailbox = new_mailbox(tmp_path)
    assert mailbox.next_job(0, orphaned=lambda: True) is None
    mailbox.post_end()
    assert mailbox.next_job(0, orphaned=lambda: False) is None


def test_outcomes_come_in_the_order_of_the_reports(tmp_path: Path) -> None:
    """The first failure is the cause."""
    mailbox = new_mailbox(tmp_path)
    first, second = (
        RankOutcome(rank=1, exit_code=1, cause="rank 1: x"),
        RankOutcome(rank=0, exit_code=1, cause="rank 0: y"),
    )
    mailbox.write_outcome(0, first)
    (tmp_path / "mailbox" / "outcomes" / "0.1.json").touch()
    mailbox.write_outcome(0, second)
    assert sorted(mailbox.outcomes(0), key=lambda outcome: outcome.rank) == [second, first]
    assert mailbox.outcomes(1) == []


def test_a_heartbeat_names_the_job_of_a_rank(tmp_path: Path) -> None:
    """The second one, within half a second, is left out."""
    mailbox = new_mailbox(tmp_path)
    heartbeats = HeartbeatWriter(mailbox, 1)
    heartbeats.job_changed(2)
    heartbeats.step_done(2, 0)
    assert mailbox.heartbeats(2) == {1: Heartbeat(identity=process_identity(), job=2, step=-1, count=1)}


def test_a_heartbeat_carries_the_newest_progress(tmp_path: Path) -> None:
    """The supervisor draws it; without one it removes the bar."""
    mailbox = new_mailbox(tmp_path)
    heartbeats = HeartbeatWriter(mailbox, 0)
    progress = Progress(label="LR sweep", step=3, num_steps=100, detail="lr 1.0e-03")
    heartbeats.show_progress(progress)
    heartbeats.job_changed(0)
    assert mailbox.heartbeats(1)[0].progress == progress
    heartbeats.show_progress(None)
    heartbeats.job_changed(0)
    assert mailbox.heartbeats(1)[0].progress is None


def test_an_incomplete_file_is_ignored(tmp_path: Path) -> None:
    """A reader may come at any moment, also on a network file system."""
    mailbox = new_mailbox(tmp_path)
    (tmp_path / "mailbox" / "heartbeats" / "0.json").write_text('{"identity": "a')
    assert mailbox.heartbeats(1) == {}


def test_the_end_of_progress_is_sent_at_once(tmp_path: Path) -> None:
    """The result is printed next, and a bar would stay below it until the next heartbeat."""
    mailbox = new_mailbox(tmp_path)
    writer = HeartbeatWriter(mailbox, 0)
    writer.show_progress(Progress(label="LR sweep", step=3, num_steps=9))
    writer.job_changed(0, step=3)
    writer.show_progress(None)
    (heartbeat,) = mailbox.heartbeats(1).values()
    assert (heartbeat.job, heartbeat.step, heartbeat.progress) == (0, 3, None)
