"""Files between a supervisor and its ranks."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest

from lrrunner.launch.mailbox import Heartbeat, HeartbeatWriter, JobMailbox, JobMessage, RankOutcome, sweep
from lrrunner.system.process_identity import process_identity


def folder(tmp_path: Path) -> JobMailbox:
    handover = JobMailbox(tmp_path / "set")
    handover.create()
    return handover


def test_a_job_arrives_as_it_was_given(tmp_path: Path) -> None:
    """And nobody but its owner may read it: it holds the secrets of the configuration."""
    handover = folder(tmp_path)
    order = JobMessage(number=3, config={"model": {"token": "abc"}}, arguments=["--config-dir", "x", "a=1"], run_id="r")
    handover.give(order)
    assert handover.next_job(3, orphaned=lambda: False) == order
    (path,) = (tmp_path / "set" / "jobs").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    handover.withdraw(3)
    assert list((tmp_path / "set" / "jobs").iterdir()) == []


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    """Outcomes of earlier ranks would be taken for those of these: a resumed batch once finished jobs in no time."""
    handover = folder(tmp_path)
    with pytest.raises(FileExistsError):
        handover.create()


def test_ranks_stop_waiting_when_told_or_orphaned(tmp_path: Path) -> None:
    """Nobody waits for ever."""
    handover = folder(tmp_path)
    assert handover.next_job(0, orphaned=lambda: True) is None
    handover.stop()
    assert handover.next_job(0, orphaned=lambda: False) is None


def test_outcomes_come_in_the_order_of_the_reports(tmp_path: Path) -> None:
    """Whose came first is whose failure counts."""
    handover = folder(tmp_path)
    first, second = RankOutcome(rank=1, code=1, cause="rank 1: x"), RankOutcome(rank=0, code=1, cause="rank 0: y")
    handover.report(0, first)
    (tmp_path / "set" / "outcomes" / "0.1.json").touch()
    handover.report(0, second)
    assert sorted(handover.outcomes(0), key=lambda outcome: outcome.rank) == [second, first]
    assert handover.outcomes(1) == []


def test_a_pulse_shows_what_a_rank_does(tmp_path: Path) -> None:
    """Steps cost a file at most twice a second."""
    handover = folder(tmp_path)
    pulse = HeartbeatWriter(handover, 1)
    pulse.change(job=2)
    pulse.step(2, 0)
    assert handover.beats(2) == {1: Heartbeat(identity=process_identity(), job=2, step=-1, count=1)}


def test_half_a_file_is_no_file(tmp_path: Path) -> None:
    """A reader may come at any moment, also on a network file system."""
    handover = folder(tmp_path)
    (tmp_path / "set" / "beats" / "0.json").write_text('{"identity": "a')
    assert handover.beats(1) == {}


def test_folders_of_dead_supervisors_are_swept(tmp_path: Path) -> None:
    """A job that no rank has read holds secrets; the folder of a living supervisor, or of another machine, stays."""
    for name in ("mine", "dead", "elsewhere"):
        JobMailbox(tmp_path / name).create()
    dead = process_identity().split(":")
    dead[2] = "1"
    for name, host in (("dead", socket.gethostname()), ("elsewhere", "another")):
        owner = {"process": ":".join(dead), "host": host}
        (tmp_path / name / "owner.json").write_text(json.dumps(owner))
    (tmp_path / "foreign").mkdir()
    sweep(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "elsewhere", "foreign"}
