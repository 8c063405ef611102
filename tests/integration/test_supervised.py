"""`lrrunner launch.num_processes=N`: one parent that starts the ranks, watches them, and outlives whatever they do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.integration.launching import (
    NO_TRACKING,
    REAL_RANKS,
    STUB_OR_REAL,
    STUB_RANKS,
    Finished,
    Run,
    environment,
    finish,
    launch,
    start,
    wait_for_rows,
    wait_until,
)
from tests.integration.test_bad_endings import assert_no_verdict, run_status

TWO = "launch.num_processes=2"
SLOW = (TWO, "model=custom", "model._target_=parts.SlowMlp")
FAILING = (TWO, "model=custom", "model._target_=parts.Failing", "+model.at=4")


def supervised_ranks(process: Run) -> list[psutil.Process]:
    """The ranks below a supervisor, by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    programs = {REAL_RANKS, STUB_RANKS}
    ranks = [child for child in children if programs & set(child.cmdline()) and "RANK" in child.environ()]
    return sorted(ranks, key=lambda child: int(child.environ()["RANK"]))


def all_below(process: Run) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process], within_s: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    for left in alive:
        left.kill()
    assert not alive


def runs(folder: Path) -> list[Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A sweep on two supervised ranks, with a model that prints, and at home a file of accelerate for other work."""
    folder = tmp_path_factory.mktemp("supervised")
    home = tmp_path_factory.mktemp("home")
    (home / "accelerate").mkdir()
    (home / "accelerate" / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: fp16\nuse_cpu: false\n"
        "debug: true\ngpu_ids: '2'\nnum_machines: 3\nnum_processes: 24\nmachine_rank: 1\nmain_process_ip: 10.0.0.1\n"
    )
    env = {"HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "CANARY_TOKEN": "canary-in-the-environment"}
    return launch(folder, TWO, "sweep.num_steps=30", "model=custom", "model._target_=parts.Talking", env=env)


def test_two_ranks_run_one_sweep(supervised: Finished) -> None:
    """One command, one run, the last lines as always, and the run is made by the parent."""
    assert supervised.code == 0, supervised.err
    lines = [line for line in supervised.out.splitlines() if " says " not in line]
    assert lines[0] == "2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step"
    assert "suggested lr: " in supervised.out
    assert supervised.err == ""
    (run,) = runs(supervised.folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == supervised.read("status.json")["mlflow_run_id"]
    assert run.data.params["sweep.num_steps"] == "30"
    assert run.data.tags["lrrunner.world_size"] == "2"
    assert "lrrunner run.dir=run launch.num_processes=2 sweep.num_steps=30" in run.data.tags["mlflow.note.content"]


def test_the_users_default_file_of_accelerate_is_left_alone(supervised: Finished) -> None:
    """It is for other work: its GPUs, its debug switch and its precision are not what the job asks for."""
    assert yaml.safe_load((supervised.run / "config.yaml").read_text())["train"]["mixed_precision"] == "fp32"


def test_what_ranks_print_is_kept_with_secrets_masked(supervised: Finished) -> None:
    """print() in a user's model goes past every logger."""
    assert "rank 0 says ***" in supervised.out
    assert "rank 1 says ***" in (supervised.run / "ranks" / "1.out").read_text()


def test_the_parent_loads_no_torch(tmp_path: Path) -> None:
    """It lives as long as the sweep and must not hold a gigabyte or a GPU."""
    program = "import sys, lrrunner.launch.supervise, mlflow; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment(), timeout=60)


def test_mistakes_leave_nothing(tmp_path: Path) -> None:
    """Stage B on ranks: code 2 reaches the shell, one message, no run and no directory."""
    done = launch(tmp_path, TWO, "model._target_=parts.Missing", "loss._target_=torch.nn.Nope")
    assert done.code == 2
    assert done.err.startswith("lrrunner: the configuration is wrong (2 errors)")
    assert done.err.count("model._target_ must be importable, got parts.Missing") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
    assert runs(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("launch.config_file=nowhere.yaml",), "launch.config_file must be a file of accelerate launch, got nowhere"),
        (("tracking.uri=sqlite:////nowhere/mlflow.db",), "tracking.uri must lie in an existing directory"),
        (("data.global_batch_size=63",), "data.global_batch_size must be divisible by 2 ranks x 1"),
    ],
)
def test_the_parent_finds_mistakes_before_ranks_start(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    """A second, not ten."""
    done = launch(tmp_path, TWO, *overrides, rank_program=STUB_RANKS)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "rank_program"),
    [
        pytest.param(0, REAL_RANKS, id="0-real"),
        pytest.param(1, STUB_RANKS, id="1-stub"),
        pytest.param(1, REAL_RANKS, id="1-real", marks=pytest.mark.long),
    ],
)
def test_a_killed_rank_is_named(tmp_path: Path, rank: int, rank_program: str) -> None:
    """SIGKILL leaves no words; the launcher saw which rank went first, and no run stays RUNNING, even rank 0's."""
    done = launch(tmp_path, *FAILING, f"+model.rank={rank}", "+model.how=kill", rank_program=rank_program)
    assert done.code == 1
    assert f"lrrunner: the sweep failed on rank {rank}: killed by SIGKILL; see run/ranks" in done.err
    assert done.read("status.json")["state"] == "failed"
    assert done.read("status.json")["cause"] == f"rank {rank}: killed by SIGKILL"
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert f"rank {rank}: killed by SIGKILL" in run.data.tags["mlflow.note.content"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "pass_0/loss")] == [0, 1, 2]


def test_an_error_is_named_once_with_its_traceback_on_disk(tmp_path: Path) -> None:
    """And what the rank said is kept, secrets masked."""
    done = launch(tmp_path, *FAILING, "+model.rank=1", env={"CANARY_TOKEN": "canary-in-the-environment"})
    assert done.code == 1
    assert done.err.count("RuntimeError: the model's own error") == 1
    assert "lrrunner: the sweep failed on rank 1: RuntimeError" in done.err
    assert re.search(r"api_key=\S*, at parts\.py:\d+ in forward; see run/ranks$", done.err.strip())
    assert "Traceback" not in done.err
    assert "Traceback" in (done.run / "ranks" / "1.log").read_text()
    assert done.read("status.json")["cause"].startswith("rank 1: RuntimeError: the model's own error")
    assert run_status(tmp_path) == "FAILED"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"canary-in-" not in path.read_bytes() or path.name.startswith("parts")


@STUB_OR_REAL
def test_a_rank_that_stands_still_is_named(tmp_path: Path, rank_program: str) -> None:
    """SIGSTOP: the others wait in a collective; the time-out ends them all."""
    process = start(tmp_path, *SLOW, "launch.timeout_s=20", rank_program=rank_program)
    wait_for_rows(tmp_path, 3, process)
    below = all_below(process)
    supervised_ranks(process)[1].suspend()
    done = finish(process, tmp_path)
    assert done.code == 1
    assert "the sweep failed on rank 1: stopped by a signal (SIGSTOP), no step for 20 s" in done.err
    assert run_status(tmp_path) == "FAILED"
    assert_gone(below, 5)


def test_a_hang_in_the_users_code_is_named_with_its_place(tmp_path: Path) -> None:
    """An endless loop on one rank: the stack says where."""
    done = launch(tmp_path, *FAILING, "+model.rank=1", "+model.how=hang", "launch.timeout_s=20")
    assert done.code == 1
    assert "the sweep failed on rank 1: no step for 20 s, at " in done.err
    assert "parts.py" in done.err


@STUB_OR_REAL
def test_a_collective_that_times_out_blames_the_silent_rank(tmp_path: Path, rank_program: str) -> None:
    """run.timeout_s comes first by default: the rank that gave up waiting is not the culprit."""
    stopped = ("+model.rank=1", "+model.how=stop", "run.timeout_s=5")
    done = launch(tmp_path, *FAILING, *NO_TRACKING, *stopped, rank_program=rank_program)
    assert done.code == 1
    assert "the sweep failed on rank 1: stopped by a signal (SIGSTOP), no answer within run.timeout_s" in done.err
    assert done.read("status.json")["cause"].startswith("rank 1: stopped by a signal")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_signal_saves_and_ends_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    """Unlike `accelerate launch`, which turns everything into 1."""
    process = start(tmp_path, *SLOW, new_session=True)
    wait_for_rows(tmp_path, 5, process)
    below = all_below(process)
    os.killpg(process.pid, number)
    done = finish(process, tmp_path)
    assert done.code == code, done.err
    assert_no_verdict(done)
    assert run_status(tmp_path) == "KILLED"
    assert_gone(below, 5)


@STUB_OR_REAL
def test_a_second_interrupt_ends_at_once(tmp_path: Path, rank_program: str) -> None:
    """Whatever the ranks are doing."""
    process = start(tmp_path, *SLOW, "+model.seconds=30", rank_program=rank_program)
    wait_until((tmp_path / "run" / "status.json").exists, process)
    below = all_below(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    done = finish(process, tmp_path, timeout_s=15)
    assert done.code == 130
    assert done.read("status.json")["state"] == "killed"
    assert run_status(tmp_path) == "KILLED"
    assert_gone(below, 5)


@pytest.mark.parametrize(
    ("stopped", "rank_program"),
    [
        pytest.param((), REAL_RANKS, id="none"),
        pytest.param((1,), STUB_RANKS, id="rank 1", marks=pytest.mark.long),
        pytest.param((0, 1), STUB_RANKS, id="both", marks=pytest.mark.long),
    ],
)
def test_ranks_do_not_outlive_a_killed_parent(tmp_path: Path, stopped: tuple[int, ...], rank_program: str) -> None:
    """SIGKILL of the parent, even with ranks that stand still: the launcher dies with it and takes them along."""
    process = start(tmp_path, *SLOW, *NO_TRACKING, "+model.seconds=0.2", rank_program=rank_program)
    wait_for_rows(tmp_path, 2, process)
    below = all_below(process)
    ranks = supervised_ranks(process)
    for rank in stopped:
        ranks[rank].suspend()
    process.kill()
    assert_gone(below, 60)
    process.communicate(timeout=10)
    if not stopped:
        assert '"killed"' in (tmp_path / "run" / "status.json").read_text()


def test_a_parent_killed_before_its_ranks_have_read_their_job_leaves_no_secret(tmp_path: Path) -> None:
    """A job on its way to the ranks holds its secrets unmasked."""
    (tmp_path / "tmp").mkdir()
    process = start(
        tmp_path,
        "launch.num_processes=2",
        *NO_TRACKING,
        "+tracking.tags.token=canary-abc",
        env={"TMPDIR": str(tmp_path / "tmp")},
    )
    wait_until(lambda: list((tmp_path / "tmp").glob("lrrunner-*/mailbox-*/jobs/0.json")), process)
    below = all_below(process)
    process.kill()
    process.communicate()
    assert_gone(below, 60)
    assert not list((tmp_path / "tmp").iterdir())


@STUB_OR_REAL
def test_a_rank_that_ends_as_if_all_were_well_is_named(tmp_path: Path, rank_program: str) -> None:
    """os._exit(0): its launcher sees a success, and the rank that lost it is the first one to fail."""
    vanishing = ("+model.rank=1", "+model.how=vanish")
    done = launch(tmp_path, *FAILING, *NO_TRACKING, *vanishing, rank_program=rank_program)
    assert done.code == 1
    assert done.read("status.json")["cause"] == "rank 1: ended with exit code 0 without reporting a cause"


def test_an_exception_without_a_message_is_named_with_its_rank(tmp_path: Path) -> None:
    """Its __str__ raises, while the rank reports it."""
    done = launch(tmp_path, *FAILING, *NO_TRACKING, "+model.rank=1", "+model.how=unprintable")
    assert done.code == 1
    cause = done.read("status.json")["cause"]
    named = r"rank 1: Unprintable: \(its message cannot be shown: RuntimeError\), at parts\.py:\d+ in forward"
    assert re.fullmatch(named, cause)
    assert f"lrrunner: the sweep failed on {cause}; see" in done.err
    assert "Traceback" in (done.run / "ranks" / "1.log").read_text()


@STUB_OR_REAL
def test_a_killed_launcher_is_named(tmp_path: Path, rank_program: str) -> None:
    """The ranks had started, and worked."""
    process = start(tmp_path, *SLOW, *NO_TRACKING, rank_program=rank_program)
    wait_for_rows(tmp_path, 3, process)
    below = all_below(process)
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    done = finish(process, tmp_path)
    assert done.code == 1
    assert "lrrunner: the sweep failed on the launcher of the ranks: killed by SIGKILL" in done.err
    assert done.read("status.json")["cause"] == "the launcher of the ranks: killed by SIGKILL"
    assert_gone(below, 5)


def test_a_rank_stopped_before_its_first_heartbeat_is_named(tmp_path: Path) -> None:
    """Only its process shows it: it has written nothing."""
    stops = {"STUB_STOPS_AT_START": "1"}
    done = launch(tmp_path, TWO, *NO_TRACKING, "launch.timeout_s=20", rank_program=STUB_RANKS, env=stops)
    assert done.code == 1
    assert "the sweep failed on rank 1: stopped by a signal (SIGSTOP), no step for 20 s" in done.err


def test_a_launch_file_that_starts_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    """One rank ran the sweep of two, and the supervisor waited for the other one."""
    settings = ("compute_environment: LOCAL_MACHINE", "distributed_type: MULTI_CPU", "use_cpu: true")
    (tmp_path / "one.yaml").write_text("\n".join((*settings, "num_machines: 1", "mixed_precision: 'no'")))
    done = launch(tmp_path, TWO, *NO_TRACKING, "launch.config_file=one.yaml", rank_program=STUB_RANKS)
    assert done.code == 2
    assert "launch.num_processes must equal the ranks that are started, got 2 and 1 with" in done.err
    assert "launch.config_file=one.yaml; correct its distributed_type" in done.err


@pytest.mark.parametrize("how", ["none", "raise"])
def test_ranks_that_cannot_report_leave_it_to_the_run_directory(tmp_path: Path, how: str) -> None:
    """A full TMPDIR, say: outcomes and heartbeats cannot be written, and everyone waited for half an hour."""
    (tmp_path / "tmp").mkdir()
    job: tuple[str, ...] = (*SLOW, "sweep.num_steps=40")
    if how == "raise":
        job = (
            TWO,
            "model=custom",
            "model._target_=parts.Failing",
            "+model.rank=0",
            "+model.at=30",
            "+model.seconds=0.1",
        )
    process = start(tmp_path, *job, *NO_TRACKING, rank_program=STUB_RANKS, env={"TMPDIR": str(tmp_path / "tmp")})
    wait_for_rows(tmp_path, 3, process)
    (mailbox,) = (tmp_path / "tmp").glob("lrrunner-*/mailbox-*")
    (mailbox / "outcomes").rmdir()
    (mailbox / "outcomes").write_text("no folder")
    done = finish(process, tmp_path)
    if how == "none":
        assert (done.code, done.read("status.json")["state"]) == (0, "finished")
    else:
        assert done.code == 1
        assert "the sweep failed on rank 0: RuntimeError: the model's own error" in done.err
        assert done.read("status.json")["cause"].startswith("rank 0: RuntimeError: the model's own error")


@pytest.mark.parametrize("workers", [(), ("data.dataloader.num_workers=1",)])
def test_a_supervised_run_leaves_nothing_in_the_temporary_folder(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """Torch's launcher left a folder for logs with every run, and each rank one in which it had met its workers."""
    temporary = Path(tempfile.mkdtemp())  # short: below pytest's own, the sockets of workers have no valid address
    environ = {"TMPDIR": str(temporary)}
    rank_program = REAL_RANKS if workers else STUB_RANKS
    done = launch(
        tmp_path, TWO, *NO_TRACKING, "sweep.num_steps=12", *workers, rank_program=rank_program, env=environ
    )  # fmt: skip
    assert done.code == 0, done.err
    assert not list(temporary.iterdir())
    temporary.rmdir()
