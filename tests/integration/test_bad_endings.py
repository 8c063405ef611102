"""Mistakes, signals, dead ranks and dead servers: a clear word, no hang, nothing lost."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.integration.launching import (
    NO_TRACKING,
    PARTS,
    Finished,
    environment,
    finish,
    launch,
    launch_command,
    start,
    start_command,
    wait_for_rows,
    wait_until,
)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that ``accelerate launch`` has started, by rank."""
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def assert_no_verdict(done: Finished) -> None:
    """After a signal: no verdict on half a curve, but the command that goes on, the same in every file."""
    lines = done.out.splitlines()
    (interrupted,) = [line for line in lines if line.startswith("interrupted:  ")]
    (go_on,) = [line for line in lines if line.startswith("go on with:   ")]
    assert "lrrunner" in go_on
    assert go_on.endswith(" run.resume=run")
    assert "run.dir=" not in go_on
    assert "verdict" not in done.out
    assert "suggested lr" not in done.out
    suggestion = done.read("suggestion.json")
    assert suggestion["stop_reason"] == "interrupted"
    assert (suggestion["verdict"], suggestion["lr"], suggestion["interval"]) == (None, None, None)
    status = done.read("status.json")
    assert status["state"] == "killed"
    assert status["cause"] == "interrupted " + interrupted.removeprefix("interrupted:  ")
    note = (done.run / "note.md").read_text()
    assert note.startswith(f"**Killed**: {status['cause']}\n")
    assert f"run.resume={done.run}\n" in note


def run_status(folder: Path) -> str:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return str(run.info.status)


def test_mistakes_of_both_stages_are_printed_once_by_two_ranks(tmp_path: Path) -> None:
    """Stage B: all ranks agree, one speaks, nobody waits; nothing is left behind."""
    done = launch(
        tmp_path, "model._target_=parts.Missing", "loss._target_=torch.nn.Nope", "data.global_batch_size=2048",
        num_processes=2, timeout_s=60,
    )  # fmt: skip
    assert done.code != 0
    assert done.err.count("lrrunner: the configuration is wrong (3 errors)") == 1
    ours = done.err.partition("E1")[0] if "\nE1" in done.err else done.err
    assert "model._target_ must be importable, got parts.Missing" in ours
    assert "must hold at least one global batch of 2048 samples, got 1437" in ours
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_stage_a_is_printed_once_by_two_ranks(tmp_path: Path) -> None:
    """The launcher ends the other rank; it does not repeat the message."""
    done = launch_command(tmp_path, "sweep.start_lr=20", num_processes=2, timeout_s=60)
    assert done.err.count("sweep.end_lr must exceed sweep.start_lr=20") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("run.dir=/dev/null/x",), "run.dir must be a writable directory, got /dev/null/x (Not a directory)"),
        (
            ("tracking.uri=sqlite:////nowhere/mlflow.db",),
            "tracking.uri must lie in an existing directory, got /nowhere",
        ),
        (("model._target_=parts.Nope",), "model._target_ must be importable, got parts.Nope"),
    ],
)
def test_a_mistake_of_stage_b_exits_with_2(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    """One process: the code itself arrives."""
    done = launch(tmp_path, *overrides)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_used_run_directory_is_refused(tmp_path: Path) -> None:
    """Nothing recorded is overwritten."""
    short = (*NO_TRACKING, "sweep.num_steps=12")
    assert launch(tmp_path, *short).code == 0
    before = (tmp_path / "run" / "records.csv").read_bytes()
    again = launch(tmp_path, *short)
    assert again.code == 2
    assert "run.dir must not hold a run yet" in again.err
    assert (tmp_path / "run" / "records.csv").read_bytes() == before


def test_a_grid_inside_ranks_is_refused_with_the_right_command(tmp_path: Path) -> None:
    """Hydra's -m in ranks averages job 0 of one rank with job 1 of another when one fails."""
    done = launch(tmp_path, "-m", "model=mlp,cnn", num_processes=2)
    assert done.code != 0
    assert done.err.count("-m must not be given inside 2 ranks, got run.dir=run model=mlp,cnn;") == 1


def test_deepspeed_is_refused_by_every_rank(tmp_path: Path) -> None:
    """Before it is imported, joined or missed; rank 0 says once what to use instead."""
    world = {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}
    ranks = [start(tmp_path, env=world | {"RANK": rank}) for rank in ("0", "1")]
    first, second = (finish(process, tmp_path) for process in ranks)
    assert (first.code, second.code) == (2, 2)
    assert "the launcher must not use DeepSpeed, whose engine steps by itself" in first.err
    assert "shard parameters with train.fsdp=true" in first.err
    assert second.err == ""


def test_worlds_of_one_are_noticed(tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` silently starts one rank; a claim says so."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lrrunner"]
    done = subprocess.run(
        [*launcher, *settings, "launch.num_processes=2"], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "launch.num_processes must equal the 1 rank(s) that were started, got 2" in done.stderr


def test_sigterm_saves_and_ends_with_143(tmp_path: Path) -> None:
    """Law: a signal ends the sweep after the current step; records, suggestion and status are there."""
    process = start(tmp_path, "model=custom", "model._target_=parts.SlowMlp")
    wait_for_rows(tmp_path, 5, process)
    process.send_signal(signal.SIGTERM)
    done = finish(process, tmp_path)
    assert done.code == 143, done.err
    assert done.read("status.json")["state"] == "killed"
    assert_no_verdict(done)
    assert run_status(tmp_path) == "KILLED"
    with (done.run / "records.csv").open() as file:
        assert len(list(csv.DictReader(file))) == done.read("status.json")["last_step"] + 1


def test_sigterm_to_the_launcher_ends_all_ranks_at_one_step(tmp_path: Path) -> None:
    """Accelerate forwards it to every rank, not at the same moment."""
    process = start_command(tmp_path, "model=custom", "model._target_=parts.SlowMlp", num_processes=2)
    wait_for_rows(tmp_path, 5, process)
    ranks = ranks_of(process)
    process.send_signal(signal.SIGTERM)
    done = finish(process, tmp_path)
    assert done.read("status.json")["state"] == "killed"
    assert run_status(tmp_path) == "KILLED"
    assert not any(rank.is_running() for rank in ranks)


def test_a_rank_stuck_in_a_collective_still_ends(tmp_path: Path) -> None:
    """Python runs no handler there: rank 1 stands still, rank 0 waits for it, and SIGTERM must still close the run."""
    process = start(tmp_path, "model=custom", "model._target_=parts.SlowMlp", num_processes=2)
    wait_for_rows(tmp_path, 3, process)
    first, second = (psutil.Process(rank.pid) for rank in process.processes)
    second.suspend()
    time.sleep(1)
    first.send_signal(signal.SIGTERM)
    process.processes[0].join(timeout=30)
    assert process.processes[0].exitcode == 143
    second.kill()
    done = finish(process, tmp_path)
    assert done.read("status.json")["state"] == "killed"
    assert run_status(tmp_path) == "KILLED"


def test_an_error_on_one_rank_names_that_rank(tmp_path: Path) -> None:
    """Rank 0 sees only a broken connection; the cause it records is rank 1's."""
    done = launch(
        tmp_path, "model=custom", "model._target_=parts.Failing", "+model.at=4", "+model.rank=1", num_processes=2
    )
    assert done.code == 1
    assert done.err.count("lrrunner: the sweep failed on rank 1: RuntimeError: the model's own error") == 1
    status = done.read("status.json")
    assert status["state"] == "failed"
    assert status["cause"].startswith("rank 1: RuntimeError: the model's own error")
    assert status["last_step"] == 2
    assert run_status(tmp_path) == "FAILED"
    assert "Traceback" in (done.run / "ranks" / "1.log").read_text()
    for path in done.run.rglob("*"):
        assert not path.is_file() or b"canary-in-an-exception" not in path.read_bytes()


def test_a_killed_rank_fails_the_run(tmp_path: Path) -> None:
    """SIGKILL leaves no words; the survivor closes the run."""
    done = launch(
        tmp_path, "model=custom", "model._target_=parts.Failing", "+model.at=4", "+model.rank=1", "+model.how=kill",
        num_processes=2,
    )  # fmt: skip
    assert done.code == 1
    assert done.read("status.json")["state"] == "failed"
    assert run_status(tmp_path) == "FAILED"


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    """SIGKILL of the launcher orphans ranks; they notice and end."""
    process = start_command(
        tmp_path, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.3", num_processes=2
    )
    wait_for_rows(tmp_path, 2, process)
    ranks = ranks_of(process)
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    process.communicate(timeout=10)
    for rank in alive:
        rank.kill()
    assert not alive
    assert run_status(tmp_path) == "KILLED"


def test_a_run_left_by_a_killed_process_is_closed_at_the_next_start(tmp_path: Path) -> None:
    """Only the machine's death leaves RUNNING, until the next start repairs it."""
    process = start(tmp_path, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.3")
    wait_for_rows(tmp_path, 2, process)
    process.kill()
    process.communicate()
    assert run_status(tmp_path) == "RUNNING"
    done = launch(tmp_path, "run.dir=second", "sweep.num_steps=12")
    assert done.code == 0, done.err
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    abandoned = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (abandoned["state"], abandoned["cause"]) == ("killed", "its process ended without reporting")


def test_an_unreachable_server_costs_no_record(tmp_path: Path) -> None:
    """The run directory is the truth; MLflow is a view of it."""
    done = launch(
        tmp_path, "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1", "sweep.num_steps=12", timeout_s=60
    )
    assert done.code == 0, done.err
    assert "MLflow does not answer" in done.err
    assert "mlflow:       not reached; later: lrrunner-sync run" in done.out.splitlines()
    assert "Traceback" not in done.err
    assert done.read("status.json")["mlflow_run_id"] is None
    assert (done.run / "suggestion.json").exists()


def test_one_interrupt_saves_also_with_loader_workers(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group; the workers' own must not count as the user's second one."""
    process = start(
        tmp_path, *NO_TRACKING, "model=custom", "model._target_=parts.SlowMlp", "data.dataloader.num_workers=2",
        new_session=True,
    )  # fmt: skip
    wait_for_rows(tmp_path, 5, process)
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process, tmp_path)
    assert done.code == 130, done.err
    assert done.read("status.json")["state"] == "killed"
    assert_no_verdict(done)
    assert "Traceback" not in done.err


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """A user who insists does not wait for a step of a minute."""
    process = start(tmp_path, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=30")
    wait_until((tmp_path / "run" / "status.json").exists, process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    done = finish(process, tmp_path, timeout_s=15)
    assert done.code == 130
    assert done.read("status.json")["state"] == "killed"
    assert run_status(tmp_path) == "KILLED"


def test_a_run_directory_that_vanishes_still_closes_the_run(tmp_path: Path) -> None:
    """The disk, not the sweep, is what broke; MLflow must not say RUNNING."""
    process = start(tmp_path, "model=custom", "model._target_=parts.SlowMlp", "+model.seconds=0.1")
    wait_for_rows(tmp_path, 3, process)
    shutil.rmtree(tmp_path / "run")
    done = finish(process, tmp_path)
    assert done.code == 1
    assert done.err.count("lrrunner: the sweep failed on rank 0: FileNotFoundError") == 1
    assert run_status(tmp_path) == "FAILED"


@pytest.mark.parametrize("launcher", [(), pytest.param(("launch.num_processes=1",), marks=pytest.mark.long)])
def test_a_reader_that_goes_away_costs_only_the_output(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """`lrrunner ... | head -1`, with a model that prints as well: the sweep and its exit code are as ever."""
    shutil.copy(PARTS, tmp_path / "parts.py")
    job = (*NO_TRACKING, *launcher, "run.dir=run", "sweep.num_steps=12", "sweep.auto_range=false")
    job += ("model=custom", "model._target_=parts.Chatty")
    line = shlex.join([sys.executable, "-m", "lrrunner", *job])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} | head -1"],
        cwd=tmp_path, env=environment(ACCELERATE_USE_CPU="1"), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["cause"]) == ("finished", None)


def test_sys_exit_in_the_users_code_is_a_failure_with_a_word(tmp_path: Path) -> None:
    """Scripts that parse arguments call it; it must not leave a run open."""
    done = launch(
        tmp_path, "model=custom", "model._target_=parts.Failing", "+model.at=3", "+model.rank=0", "+model.how=exit"
    )
    assert done.code == 1
    assert "lrrunner: the sweep failed on rank 0: SystemExit: 3" in done.err
    assert done.read("status.json")["state"] == "failed"
    assert run_status(tmp_path) == "FAILED"


def test_a_file_that_is_no_database_is_a_mistake_of_stage_b(tmp_path: Path) -> None:
    """Exit 2, one message, and nothing left behind."""
    (tmp_path / "notes.txt").write_text("not a database, but long enough to have a header\n" * 100)
    done = launch(tmp_path, "tracking.uri=sqlite:///notes.txt")
    assert done.code == 2
    assert "tracking.uri must name a usable store" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sixty_launches_all_return_0(tmp_path: Path) -> None:
    """DDP outliving its process group aborts up to half of gloo runs at exit."""
    codes = []
    for i in range(60):
        folder = tmp_path / str(i)
        folder.mkdir()
        codes.append(launch_command(folder, *NO_TRACKING, "sweep.num_steps=12", num_processes=2).code)
    assert codes == [0] * 60


def test_environment_helper_keeps_tests_apart() -> None:
    """A launcher around the tests must not leak into the ones they start."""
    os.environ["ACCELERATE_TEST_LEAK"] = "1"
    try:
        assert "ACCELERATE_TEST_LEAK" not in environment()
    finally:
        del os.environ["ACCELERATE_TEST_LEAK"]
