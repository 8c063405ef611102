"""What ``scripts/submit`` checks before anything is queued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.errors import ConfigError
from lrrunner.slurm.submit import follow, num_checked_jobs
from lrrunner.slurm.time_limit import check_time_limit


def test_a_submission_is_checked_as_the_job_will_read_it() -> None:
    """One job, or every point of a grid; the run directory is left to the batch script."""
    assert num_checked_jobs("sweep", ["optimizer=sgd", "run.dir=x"]) == 1
    assert num_checked_jobs("array", ["optimizer=sgd,adamw", "sweep.seed=1,2,3"]) == 6
    with pytest.raises(ConfigError, match=r"sweep\.num_steps must be at least 2, got 1"):
        num_checked_jobs("batch", ["sweep.num_steps=1,20"])


SWEEP = (Path(__file__).resolve().parents[3] / "slurm/sweep.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "environ", "limit"),
    [
        (["--time=2"], {}, "2, which is 120 s"),
        (["--time", "00:01:30"], {}, "00:01:30, which is 90 s"),
        (["-t1"], {}, "1, which is 60 s"),
        (["-t", "2"], {"SBATCH_TIMELIMIT": "60"}, "2, which is 120 s"),
        ([], {"SBATCH_TIMELIMIT": "0:30"}, "0:30, which is 30 s"),
    ],
)
def test_a_limit_at_or_below_the_warning_is_refused(options: list[str], environ: dict[str, str], limit: str) -> None:
    """The job was asked to stop as soon as it had begun, and requeued itself for ever."""
    with pytest.raises(ConfigError) as caught:
        check_time_limit(SWEEP, ["--nodes=2", *options], environ)
    assert caught.value.errors == (
        f"--time must exceed the warning of 120 s before the limit (--signal), got {limit}; give it the time of the "
        "sweep and 120 s",
    )


@pytest.mark.parametrize(
    "options",
    [[], ["--time=3"], ["--time=1-0"], ["--time=UNLIMITED"], ["--time=0"], ["--time=1", "--signal=B:USR2@30"]],
)
def test_other_limits_are_left_to_slurm(options: list[str]) -> None:
    """Also none, which is the partition's."""
    check_time_limit(SWEEP, options, {})


SCONTROL = """#!/bin/sh
case $(cat {folder}/calls 2>/dev/null | wc -l) in
0 | 1) echo "JobId=7 JobState=PENDING Reason=Priority ExitCode=0:0 StdOut={folder}/none" ;;
2) echo "JobId=7 JobState=PENDING Reason=Resources ExitCode=0:0 StdOut={folder}/none" ;;
*) echo "JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0 StdOut={folder}/none" ;;
esac
echo >>{folder}/calls
"""


def test_waiting_shows_why_a_job_is_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reason once: a job that cannot start looks like one that hangs."""
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("lrrunner.slurm.submit.POLL_S", 0.01)
    assert follow("7") == 0
    assert capsys.readouterr().out.splitlines() == [
        "job 7: pending (Priority)",
        "job 7: pending (Resources)",
        "job 7: COMPLETED",
    ]


def test_the_check_of_the_limit_is_a_command_of_its_own(tmp_path: Path) -> None:
    """scripts/submit calls it before it counts the jobs."""
    script = tmp_path / "sweep.sbatch"
    script.write_text(SWEEP)
    command = [sys.executable, "-m", "lrrunner.slurm.submit", "limit", str(script)]
    refused = subprocess.run([*command, "--time=1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--time must exceed the warning of 120 s" in refused.stderr
    taken = subprocess.run([*command, "--time=5"], capture_output=True, text=True, check=False)
    assert (taken.returncode, taken.stdout, taken.stderr) == (0, "", "")


def test_ctrl_c_while_a_job_is_followed_says_that_it_goes_on(tmp_path: Path) -> None:
    """Only the following ends, which a traceback does not tell."""
    program = (
        "import os, signal, time; from lrrunner.slurm import submit; "
        "submit.follow = lambda job: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)); submit.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "follow", "17"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout == "job 17: goes on without this terminal; scancel 17 ends it\n"
