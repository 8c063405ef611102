"""argv and environment of the ranks, as literals."""

from __future__ import annotations

import sys

import pytest

from lrrunner.launch.rank_command import RankPlan, launch_argv, launch_environment

AGENT = [sys.executable, "-m", "lrrunner.launch.accelerate_agent"]
OURS = ["--config_file", "/mailbox/accelerate.yaml"]
PLAIN = ["--mixed_precision", "no", "--dynamo_backend", "no"]
RANKS = ["-m", "lrrunner.worker.warm_rank"]

ARGV = {
    "two CPU ranks": (
        RankPlan(num_processes=2),
        [
            *AGENT,
            *OURS,
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--main_process_port",
            "0",
            "--log_dir",
            "/mailbox/launcher",
            *PLAIN,
        ],
    ),
    "eight GPUs": (
        RankPlan(num_processes=8, gpus=tuple("01234567")),
        [
            *AGENT,
            *OURS,
            "--multi_gpu",
            "--num_processes",
            "8",
            "--num_machines",
            "1",
            "--main_process_port",
            "0",
            "--log_dir",
            "/mailbox/launcher",
            *PLAIN,
        ],
    ),
    "own file": (
        RankPlan(num_processes=4, gpus=tuple("0123"), config_file="mine.yaml"),
        [
            *AGENT,
            "--config_file",
            "mine.yaml",
            "--num_processes",
            "4",
            "--main_process_port",
            "0",
            "--log_dir",
            "/mailbox/launcher",
        ],
    ),
}


@pytest.mark.parametrize("name", ARGV)
def test_argv(name: str) -> None:
    """Precision and compiler come from the job or from the user's own file, never from a default file at home."""
    plan, argv = ARGV[name]
    assert launch_argv(plan, settings_file="/mailbox/accelerate.yaml") == [*argv, *RANKS]


@pytest.mark.parametrize("gpus", [(), ("3",)])
def test_one_rank_needs_no_launcher(gpus: tuple[str, ...]) -> None:
    """Accelerate's launcher of one process leaves it orphaned after SIGTERM."""
    assert launch_argv(RankPlan(num_processes=1, gpus=gpus), settings_file="x") == [sys.executable, *RANKS]


def environment(plan: RankPlan, **environ: str) -> dict[str, str]:
    return launch_environment(plan, environ, mailbox="/b/mailboxes/0", supervisor="me", num_cores=16)


def test_environment_of_cpu_ranks() -> None:
    """Without the switch `--multi_gpu` starts worlds of one rank; threads share the cores."""
    assert environment(RankPlan(num_processes=4), HOME="/home/ann") == {
        "HOME": "/home/ann",
        "LRRUNNER_MAILBOX": "/b/mailboxes/0",
        "LRRUNNER_SUPERVISOR": "me",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "4",
    }


def test_the_users_own_file_decides_about_devices() -> None:
    """Without nvidia-smi lrrunner sees no GPU, but the file may be for another kind of device."""
    assert "ACCELERATE_USE_CPU" not in environment(RankPlan(num_processes=2, config_file="mine.yaml"))


def test_environment_of_gpu_ranks() -> None:
    """A worker group sees its own GPUs only."""
    assert environment(RankPlan(num_processes=2, gpus=("2", "3")), CUDA_VISIBLE_DEVICES="0,1,2,3") == {
        "LRRUNNER_MAILBOX": "/b/mailboxes/0",
        "LRRUNNER_SUPERVISOR": "me",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "OMP_NUM_THREADS": "8",
    }


def test_a_worker_group_beside_others_uses_its_own_cores() -> None:
    """Groups that share cores slow each other down; the user's own number of threads takes precedence."""
    plan = RankPlan(num_processes=2, cores=(4, 5, 6, 7))
    assert environment(plan)["LRRUNNER_CORES"] == "4,5,6,7"
    assert environment(plan)["OMP_NUM_THREADS"] == "2"
    assert environment(plan, OMP_NUM_THREADS="1")["OMP_NUM_THREADS"] == "1"


def test_another_rank_program_can_be_started() -> None:
    """Tests of the supervisor need ranks that load no torch."""
    plan = RankPlan(num_processes=1, rank_program="tests.stub_rank")
    assert launch_argv(plan, settings_file="x") == [sys.executable, "-m", "tests.stub_rank"]
