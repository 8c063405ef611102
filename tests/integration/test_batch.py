"""A batch from the command line to the ledger: what fails is named, the rest finishes, and nothing waits for ever."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.integration import launching
from tests.integration.launching import (
    NO_TRACKING,
    REAL_RANKS,
    STUB_OR_REAL,
    STUB_RANKS,
    Finished,
    Run,
    launch,
    start,
    wait_for_rows,
    wait_until,
)
from tests.integration.test_supervised import all_below, assert_gone

BATCH = ("-m", "launch.num_processes=2", "sweep.num_steps=12")
TIMEOUTS_S = {STUB_RANKS: 12, REAL_RANKS: 25}


def ledger(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_label(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """Ledger lines by the value of one override."""
    found = {}
    for line in ledger(folder):
        (value,) = [text.partition("=")[2] for text in line["overrides"] if text.startswith(f"{key}=")]
        found[value] = line
    return found


def finish(process: Run, timeout_s: float = 280) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a batch, at its end."""
    done = launching.finish(process, Path(), timeout_s)
    return done.code, done.out, done.err


def wait_for_lines(folder: Path, count: int, process: Run, timeout_s: float = 120) -> None:
    wait_until(lambda: len(ledger(folder)) >= count, process, timeout_s=timeout_s)


def batch_runs(folder: Path) -> list[Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


MODES = ("fine", "all_raise", "raise", "kill", "stop", "a", "b", "c", "d", "e", "f", "g")


@STUB_OR_REAL
def test_twelve_jobs_of_which_four_fail(tmp_path: Path, rank_program: str) -> None:
    """One fails on all ranks, one raises on rank 1 only, one rank is killed, one is stopped; eight finish."""
    timeout_s = TIMEOUTS_S[rank_program]
    process = start(
        tmp_path, *BATCH, "model=custom", "model._target_=parts.Moody", f"+model.mood={','.join(MODES)}",
        f"launch.timeout_s={timeout_s}", rank_program=rank_program,
    )  # fmt: skip
    code, _out, err = finish(process)
    assert code == 1, err
    assert "Traceback" not in err
    lines = by_label(tmp_path, "+model.mood")
    assert len(ledger(tmp_path)) == 12
    assert {mood for mood, line in lines.items() if line["state"] == "finished"} == set(MODES) - {
        "all_raise", "raise", "kill", "stop",
    }  # fmt: skip
    causes = {mood: line["cause"] for mood, line in lines.items() if line["state"] == "failed"}
    position = "" if rank_program == STUB_RANKS else r", at parts\.py:\d+ in forward"
    assert re.fullmatch(rf"rank [01]: RuntimeError: in a bad mood{position}", causes["all_raise"])
    assert re.fullmatch(rf"rank 1: RuntimeError: in a bad mood{position}", causes["raise"])
    assert causes["kill"] == "rank 1: killed by SIGKILL"
    assert causes["stop"] == f"rank 1: stopped by a signal (SIGSTOP), no step for {timeout_s} s"
    assert max(line["seconds"] for line in lines.values()) < timeout_s + 40
    statuses = {run.info.run_id: run.info.status for run in batch_runs(tmp_path)}
    assert "RUNNING" not in statuses.values()
    for line in lines.values():
        assert statuses[line["run_id"]] == {"finished": "FINISHED", "failed": "FAILED"}[line["state"]]
        status = json.loads((tmp_path / "run" / line["run_dir"] / "status.json").read_text())
        assert (status["state"], status["cause"]) == (line["state"], line["cause"])
    assert not list((tmp_path / "run" / ".lrrunner-sets").glob("*"))


@STUB_OR_REAL
def test_a_batch_that_was_killed_resumes_with_the_missing_jobs(tmp_path: Path, rank_program: str) -> None:
    """SIGKILL of the parent after five jobs: no orphan, and the same command with run.resume repeats no job."""
    grid = (*BATCH, *NO_TRACKING, "sweep.seed=range(12)")
    process = start(tmp_path, *grid, rank_program=rank_program)
    wait_for_lines(tmp_path, 5, process)
    below = all_below(process)
    process.kill()
    process.communicate()
    assert_gone(below, 60)
    before = ledger(tmp_path)
    assert 5 <= len(before) < 12
    code, _, err = finish(start(tmp_path, *grid, "run.dir=null", "run.resume=run", rank_program=rank_program))
    assert code == 0, err
    after = ledger(tmp_path)
    assert after[: len(before)] == before
    assert sorted(line["job"] for line in after) == list(range(12))
    assert all(line["state"] == "finished" for line in after)
    for line in after:
        status = json.loads((tmp_path / "run" / line["run_dir"] / "status.json").read_text())
        assert status["state"] == "finished"


CANARY = "canary-of-a-batch"


@pytest.fixture(scope="module")
def real_batch(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Four jobs on two real ranks, of which the second is wrong, with secrets among the overrides."""
    return launch(
        tmp_path_factory.mktemp("batch"), *BATCH, "model=custom", "model._target_=parts.Pids", "+model.tag=x,bad,y,z",
        f"+tracking.tags.hub_token={CANARY}-1", f"+tracking.tags.api_key={CANARY}-2",
    )  # fmt: skip


def test_ranks_are_warm(real_batch: Finished) -> None:
    """Four jobs, one worker group: no rank imports torch twice, and no model outlives its job."""
    pids = [(real_batch.folder / f"pids-{tag}").read_text().split() for tag in "xyz"]
    assert len(set(pids[0])) == 2
    assert all(set(tag_pids) == set(pids[0]) for tag_pids in pids)
    assert all(pid.endswith(":0") for tag_pids in pids for pid in tag_pids)
    assert [line.split("   ")[0] for line in real_batch.out.splitlines()[1:5]] == [
        "[1/4] tag=x", "[2/4] tag=bad", "[3/4] tag=y", "[4/4] tag=z",
    ]  # fmt: skip


def test_a_configuration_error_of_stage_b_costs_one_job_and_no_worker_group(real_batch: Finished) -> None:
    """All ranks agree on it before the first forward, and run the next job."""
    assert real_batch.code == 1, real_batch.err
    lines = by_label(real_batch.folder, "+model.tag")
    assert {tag: line["state"] for tag, line in lines.items()} == {
        "x": "finished", "bad": "failed", "y": "finished", "z": "finished",
    }  # fmt: skip
    cause = r"model could not be built: parts\.Pids raised ValueError: a bad tag, at parts\.py:\d+ in __init__"
    assert re.fullmatch(cause, lines["bad"]["cause"])


def test_no_secret_stays_on_disk(real_batch: Finished) -> None:
    """Jobs reach their ranks as files; neither these nor any other file keeps a secret, and Hydra writes none."""
    assert_no_canary(real_batch.folder, real_batch.out + real_batch.err, CANARY)
    assert not list(real_batch.folder.rglob("multirun.yaml"))


def test_wrong_points_are_reported_with_their_overrides_before_anything_starts(tmp_path: Path) -> None:
    """Stage A of all jobs; an error of all of them is reported once."""
    process = start(tmp_path, *BATCH, "model=mlp,resnet", "data.global_batch_size=64,63", "sweep.strat_lr=1")
    code, _out, err = finish(process, 60)
    assert code == 2
    assert err.count("sweep.strat_lr is not a configuration key; did you mean sweep.start_lr?\n") == 1
    assert "lenet, mlp; got resnet (in job 'model=resnet data." in err
    assert "got 63; use 62 or 64 (in job 'model=mlp data.global_batch_size=63'" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@STUB_OR_REAL
@pytest.mark.parametrize(("times", "within_s"), [(1, 60), (2, 20)])
def test_an_interrupt_leaves_a_right_ledger(tmp_path: Path, times: int, within_s: float, rank_program: str) -> None:
    """Once: the running job saves, and no other starts. Twice: all end at once."""
    process = start(
        tmp_path, *BATCH, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.05,0.2,0.3",
        "sweep.num_steps=40", rank_program=rank_program,
    )  # fmt: skip
    wait_for_lines(tmp_path, 1, process)
    wait_for_rows(tmp_path, 3, process, name="001/records.csv")
    below = all_below(process)
    process.send_signal(signal.SIGINT)
    if times == 2:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    code, _, err = finish(process, within_s)
    assert code == 130, err
    assert_gone(below, 5)
    assert [line["state"] for line in ledger(tmp_path)] == ["finished", "killed"]
    assert "RUNNING" not in {run.info.status for run in batch_runs(tmp_path)}
    assert json.loads((tmp_path / "run" / "001" / "status.json").read_text())["state"] == "killed"


@STUB_OR_REAL
def test_worker_groups_side_by_side_and_one_for_each_precision(tmp_path: Path, rank_program: str) -> None:
    """Two groups at a time; a job of another precision gets a group of its own."""
    process = start(
        tmp_path, "-m", "launch.num_processes=1", "launch.concurrent=2", "sweep.num_steps=12", *NO_TRACKING,
        "model=custom", "model._target_=parts.Pids", "+model.tag=x,y,z", "train.mixed_precision=fp32,bf16",
        rank_program=rank_program,
    )  # fmt: skip
    code, _, err = finish(process)
    assert code == 0, err
    assert len(ledger(tmp_path)) == 6
    pids = [set((tmp_path / f"pids-{tag}").read_text().split()) for tag in "xyz"]
    assert len(set().union(*pids)) >= 2


def assert_no_canary(folder: Path, text: str, canary: str) -> None:
    """Neither printed nor in any file, plain or as Hydra's sweeper escapes it."""
    assert canary not in text
    for path in folder.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_no_password_of_an_unquoted_uri_stays_on_disk(tmp_path: Path) -> None:
    """Hydra's sweeper escapes the colons of values that were typed without quotes."""
    uri = "tracking.uri=http://ann:CAN:ARY123@127.0.0.1:9/x"
    process = start(
        tmp_path, "-m", "launch.num_processes=1", "sweep.num_steps=12", uri, "tracking.timeout_s=1", "sweep.seed=1,2"
    )
    code, out, err = finish(process)
    assert code == 0, err
    assert_no_canary(tmp_path, out + err, "ARY123")
    assert {"tracking.uri=http://***@127.0.0.1:9/x"} <= set(ledger(tmp_path)[0]["overrides"])


def test_a_directory_in_use_or_of_another_batch_is_refused(tmp_path: Path) -> None:
    """Nothing recorded is overwritten, and no job is run twice."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").touch()
    code, _, err = finish(start(tmp_path, *BATCH, *NO_TRACKING, "sweep.seed=1,2"), 60)
    assert code == 2
    assert "run.dir must not hold a batch yet, got " in err
    code, _, err = finish(start(tmp_path, *BATCH, *NO_TRACKING, "sweep.seed=1,2", "run.resume=nowhere"), 60)
    assert code == 2
    assert "run.resume must name a batch directory, got nowhere" in err


def test_a_job_that_spoils_the_process_does_not_change_the_next_one(tmp_path: Path) -> None:
    """set_default_dtype(float64) in one job changed all later jobs on these warm ranks, silently."""
    job = (
        "launch.num_processes=1",
        "sweep.num_steps=12",
        "model=custom",
        "model._target_=parts.Spoiling",
        *NO_TRACKING,
    )
    for name in ("batch", "fresh"):
        (tmp_path / name).mkdir()
    code, _, err = finish(start(tmp_path / "batch", "-m", *job, "+model.spoils=true,false"))
    assert code == 0, err
    code, _, err = finish(start(tmp_path / "fresh", *job, "+model.spoils=false"))
    assert code == 0, err
    spoiling, next_one, fresh = (
        [row.rsplit(",", 2)[0] for row in (tmp_path / path / "records.csv").read_text().splitlines()]
        for path in ("batch/run/000", "batch/run/001", "fresh/run")
    )
    assert next_one == fresh
    assert spoiling != fresh, "the first job must have been another"
