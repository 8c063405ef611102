"""Jobs on a real Slurm, which scripts/slurm_cluster starts on this machine."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.integration.launching import NO_TRACKING, PARTS, environment, launch

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
DEADLINE_S = 240.0

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(name, path=PATH) is None for name in PROGRAMS), reason=f"needs a real Slurm; {INSTALL}"
    ),
    pytest.mark.timeout(900),
]

SLOW = (
    *("model=custom", "model._target_=parts.Mortal", "+model.seconds=0.15", "sweep.num_steps=40"),
    *("sweep.auto_range=false", "sweep.start_lr=1e-4", "sweep.end_lr=1", "run.checkpoint_every_s=0.5"),
)

HOSTILE = 'it\'s "quoted"; $(touch x) `touch y` & > z | ü\n second line'


class Cluster:
    """A running cluster; jobs are submitted from ``folder``."""

    def __init__(self, settings: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.env = environment(**settings, LRRUNNER_VENV=str(Path(sys.prefix)), PATH=PATH)

    def run(self, *arguments: str) -> str:
        """The output of a command."""
        done = subprocess.run(arguments, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def is_up_again(self, node: str) -> bool:
        """Whether a node is no longer down; its slurmd may register by itself, else the node is resumed."""
        if "DOWN" not in self.run("scontrol", "show", "node", node):
            return True
        command = ("scontrol", "update", f"nodename={node}", "state=resume")
        subprocess.run(command, env=self.env, capture_output=True, check=False)  # refused if it has come up meanwhile
        return False

    def submit(self, *arguments: str) -> str:
        """The id of a job."""
        shutil.copy(PARTS, self.folder / "parts.py")
        out = self.run(str(ROOT / "scripts/submit"), *arguments)
        return str(re.findall(r"^job (\d+)$", out, re.MULTILINE)[-1])

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job, as Slurm shows them."""
        return dict(re.findall(r"(?:^| )([A-Za-z]+)=(\S*)", self.run("scontrol", "-o", "show", "job", number)))

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            outputs = [path.read_text() for path in self.folder.glob("lrrunner*.out")]
            assert time.monotonic() < deadline, (f"never {what}", outputs)
            time.sleep(0.2)

    def wait_for_state(self, number: str, *states: str) -> dict[str, str]:
        """Wait until a job has reached a state; its fields then."""
        self.wait(f"{states}", lambda: self.job(number)["JobState"] in states)
        return self.job(number)

    def wait_for_rows(self, number: str, count: int) -> None:
        """Wait until a job has recorded a number of steps."""
        path = self.folder / f"runs/slurm-{number}/records.csv"
        self.wait("records", lambda: path.exists() and len(path.read_text().splitlines()) > count)

    def finish(self, number: str) -> Path:
        """The run directory of a job, which must complete."""
        job = self.wait_for_state(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        assert job["JobState"] == "COMPLETED", (self.folder / f"lrrunner-{number}.out").read_text()
        return self.folder / f"runs/slurm-{number}"


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """A cluster of three nodes for this module; munge does not work in pytest's temporary folder, which is private."""
    base = Path(tempfile.mkdtemp(prefix="lrrunner-cluster-"))
    own = {"LRRUNNER_CLUSTER": str(base), "LRRUNNER_CLUSTER_PORT": str(28000 + os.getpid() % 1000 * 4)}
    script = str(ROOT / "scripts/slurm_cluster")
    env = dict(os.environ) | own | {"PATH": PATH}
    try:
        started = subprocess.run([script, "start", "3"], env=env, capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stderr
        shown = subprocess.run([script, "env"], env=env, capture_output=True, text=True, check=True).stdout
        yield dict(re.findall(r"^export (\w+)=(.*)$", shown, re.MULTILINE))
    finally:
        subprocess.run([script, "stop"], env=env, capture_output=True, check=False)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def cluster(settings: dict[str, str], tmp_path: Path) -> Cluster:
    return Cluster(settings, tmp_path)


def records(run: Path) -> list[dict[str, str]]:
    with (run / "records.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("elapsed_s", "timestamp_ms")} for row in csv.DictReader(file)
        ]


def test_two_nodes_of_two_ranks_are_four_ranks_and_overrides_stay_data(cluster: Cluster, tmp_path: Path) -> None:
    """The same records as four local ranks; text that a shell would execute arrives as it was typed."""
    job = ("sweep.num_steps=25", "sweep.auto_range=false")
    quoted = HOSTILE.replace("\\", "\\\\").replace('"', '\\"')
    number = cluster.submit(
        "--nodes=2", "--ntasks-per-node=2", str(ROOT / "slurm/sweep.sbatch"), *job, f'+tracking.tags.odd="{quoted}"'
    )
    run = cluster.finish(number)
    (tmp_path / "local").mkdir()
    local = launch(tmp_path / "local", *job, *NO_TRACKING, num_processes=4)
    assert local.code == 0, local.err
    ours, theirs = records(run), records(local.run)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert float(mine["lr"]) == float(other["lr"])
    assert json.loads((run / "suggestion.json").read_text())["world_size"] == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["tracking"]["tags"]["odd"] == HOSTILE
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    mlflow_run = client.get_run(json.loads((run / "status.json").read_text())["mlflow_run_id"])
    assert (mlflow_run.info.status, mlflow_run.data.tags["odd"]) == ("FINISHED", HOSTILE)
    assert not {"x", "y", "z"} & {path.name for path in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The slow job on two local ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = launch(folder, *SLOW, *NO_TRACKING, num_processes=2)
    assert run.code == 0, run.err
    return records(run.run)


def preempted(cluster: Cluster, number: str) -> None:
    """A job of higher priority needs all nodes."""
    cluster.run("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")


def requeued(cluster: Cluster, number: str) -> None:
    cluster.run("scontrol", "requeue", number)


def without_a_node(cluster: Cluster, number: str) -> None:
    """Its last node goes down, and comes back for the other tests."""
    node = cluster.run("scontrol", "show", "hostnames", cluster.job(number)["NodeList"]).split()[-1]
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    cluster.wait("requeued", lambda: cluster.job(number)["Restarts"] == "1")
    cluster.wait("back", lambda: cluster.is_up_again(node))


def warned(cluster: Cluster, number: str) -> None:
    """As before the end of its time: the batch script gets the signal, and requeues the job."""
    cluster.run("scancel", "--batch", "--signal=USR2", number)


LONG = functools.partial(pytest.param, marks=pytest.mark.long)


@pytest.mark.parametrize("disturb", [preempted, LONG(requeued), LONG(without_a_node), LONG(warned)])
def test_an_interrupted_job_resumes_by_itself(
    disturb: Callable[[Cluster, str], None], cluster: Cluster, undisturbed: list[dict[str, str]], tmp_path: Path
) -> None:
    """Preemption, requeue, a lost node, a warning: in the same run directory and MLflow run, to the same records."""
    number = cluster.submit("--nodes=2", "--ntasks-per-node=1", str(ROOT / "slurm/sweep.sbatch"), *SLOW)
    cluster.wait_for_rows(number, 8)
    disturb(cluster, number)
    run = cluster.finish(number)
    assert cluster.job(number)["Restarts"] == "1"
    assert records(run) == undisturbed
    status: dict[str, Any] = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("lrrunner")
    assert experiment is not None
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert (mlflow_run.info.run_id, mlflow_run.info.status) == (status["mlflow_run_id"], "FINISHED")


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def output_of_ended(cluster: Cluster, number: str) -> str:
    """What a job has printed, which must end without a success."""
    assert cluster.wait_for_state(number, *ENDED)["JobState"] != "COMPLETED"
    return (cluster.folder / f"lrrunner-{number}.out").read_text()


def test_a_job_that_makes_no_progress_does_not_requeue_itself(cluster: Cluster) -> None:
    """With a time limit at or below the warning it did so for ever: seven times in eight minutes."""
    number = cluster.submit("--nodes=1", "--ntasks-per-node=1", str(ROOT / "slurm/sweep.sbatch"), *SLOW)
    cluster.wait("started", lambda: cluster.job(number)["JobState"] == "RUNNING")
    cluster.wait("its step", lambda: f"{number}.0" in cluster.run("squeue", "--steps", "--noheader", "--format=%i"))
    warned(cluster, number)
    shown = output_of_ended(cluster, number)
    assert f"not requeued: no step was recorded in runs/slurm-{number} since the job began or was requeued" in shown
    assert cluster.job(number)["Restarts"] == "0"


@pytest.mark.long
def test_a_job_requeues_itself_only_so_often(cluster: Cluster) -> None:
    """Each time with progress; the number is a site's to choose."""
    cluster.env["LRRUNNER_MAX_REQUEUES"] = "1"
    number = cluster.submit("--nodes=1", "--ntasks-per-node=1", str(ROOT / "slurm/sweep.sbatch"), *SLOW)
    cluster.wait_for_rows(number, 5)
    warned(cluster, number)
    cluster.wait("requeued", lambda: cluster.job(number)["Restarts"] == "1")
    cluster.wait_for_rows(number, 20)
    warned(cluster, number)
    shown = output_of_ended(cluster, number)
    assert "warned by the scheduler: requeued, to resume" in shown
    assert "not requeued: it has been 1 times (LRRUNNER_MAX_REQUEUES)" in shown
    assert cluster.job(number)["Restarts"] == "1"


def test_submit_refuses_a_time_limit_that_cannot_fit(cluster: Cluster, tmp_path: Path) -> None:
    """The warning would come as soon as the job has begun."""
    command = [str(ROOT / "scripts/submit"), "--time=2", str(ROOT / "slurm/sweep.sbatch"), *SLOW]
    done = subprocess.run(command, cwd=tmp_path, env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--time must exceed the warning of 120 s before the limit (--signal), got 2, which is 120 s" in done.stderr
    assert "job" not in done.stdout


def test_a_short_limit_is_said_in_the_jobs_log(cluster: Cluster) -> None:
    """Submitted without the check."""
    shutil.copy(PARTS, cluster.folder / "parts.py")
    cluster.env["LRRUNNER_SITE"] = str(ROOT / "slurm/site.env")
    cluster.env["LRRUNNER_SLURM"] = str(ROOT / "slurm")
    short = ("sweep.num_steps=12", "sweep.auto_range=false", *NO_TRACKING)
    script = str(ROOT / "slurm/sweep.sbatch")
    number = cluster.run("sbatch", "--parsable", "--time=1", "--ntasks=1", "--signal=B:USR2@1", script, *short).strip()
    cluster.wait_for_state(number, *ENDED)
    shown = (cluster.folder / f"lrrunner-{number}.out").read_text()
    assert "the time limit of 60 s leaves no time before the warning, 120 s before its end" in shown


@pytest.mark.parametrize("num_nodes", [LONG(1), 2])
def test_scancel_leaves_the_run_killed_with_its_records(num_nodes: int, cluster: Cluster, tmp_path: Path) -> None:
    """Not RUNNING for ever, and the records are kept. One rank alone runs without a launcher, which would die first."""
    number = cluster.submit(f"--nodes={num_nodes}", "--ntasks-per-node=1", str(ROOT / "slurm/sweep.sbatch"), *SLOW)
    cluster.wait_for_rows(number, 5)
    cluster.run("scancel", number)
    run = tmp_path / f"runs/slurm-{number}"
    cluster.wait_for_state(number, "CANCELLED")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "killed"
    assert len(records(run)) >= 5
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(status["mlflow_run_id"]).info.status == "KILLED"


def test_submit_refuses_a_wrong_configuration_before_it_queues(cluster: Cluster, tmp_path: Path) -> None:
    """On the login node, in a second, instead of after an hour in the queue."""
    command = [str(ROOT / "scripts/submit"), str(ROOT / "slurm/sweep.sbatch"), "sweep.num_stepz=3", "sweep.end_lr=-1"]
    done = subprocess.run(command, cwd=tmp_path, env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean sweep.num_steps?" in done.stderr
    assert "sweep.end_lr must exceed" in done.stderr
    assert "job" not in done.stdout


def test_submit_waits_with_the_log_and_the_code(cluster: Cluster, tmp_path: Path) -> None:
    """For scripts: what the job prints, and its exit code."""
    command = [
        str(ROOT / "scripts/submit"),
        "--wait",
        str(ROOT / "slurm/sweep.sbatch"),
        "data.global_batch_size=100000",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=cluster.env, capture_output=True, text=True, check=False)
    assert "data.train must hold at least one global batch of 100000 samples" in done.stdout
    assert "FAILED" in done.stdout
    assert done.returncode == 2


def test_a_batch_runs_in_one_allocation(cluster: Cluster, tmp_path: Path) -> None:
    """Warm ranks on one node; commas and brackets of a grid arrive."""
    grid = (
        "launch.num_processes=2",
        "sweep.num_steps=15",
        "sweep.auto_range=false",
        "optimizer=sgd,adamw",
        *NO_TRACKING,
    )
    number = cluster.submit("--cpus-per-task=2", str(ROOT / "slurm/batch.sbatch"), *grid)
    run = cluster.finish(number)
    with (run / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_an_array_is_a_grid_with_one_writer_to_mlflow(cluster: Cluster, tmp_path: Path) -> None:
    """Six points on six tasks; the job after them writes the summary and the runs in MLflow."""
    grid = ("sweep.num_steps=12", "sweep.auto_range=false", "optimizer=sgd,adamw", "sweep.seed=1,2,3")
    shutil.copy(PARTS, tmp_path / "parts.py")
    out = cluster.run(str(ROOT / "scripts/submit"), "--ntasks=1", str(ROOT / "slurm/array.sbatch"), *grid)
    assert "--array=0-5" in out
    array, summary = re.findall(r"^job (\d+)$", out, re.MULTILINE)
    job = cluster.wait_for_state(summary, "COMPLETED", "FAILED", "CANCELLED")
    outputs = {path.name: path.read_text() for path in tmp_path.glob("lrrunner-*.out")}
    assert job["JobState"] == "COMPLETED", outputs
    with (tmp_path / f"runs/slurm-{array}/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["state"] for row in rows} == {"finished"}
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("lrrunner")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 7
    assert sum("mlflow.parentRunId" in run.data.tags for run in runs) == 6


@pytest.mark.long
def test_submitit_queues_a_job_for_each_point(cluster: Cluster) -> None:
    """Each with two supervised ranks and a run directory of its own; the process that waits sums them up."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")
    overrides = (
        *launcher,
        "launch.num_processes=2",
        "optimizer=sgd,adamw",
        "sweep.num_steps=40",
        "run.dir=batch",
        *NO_TRACKING,
    )
    secret = "+tracking.tags.hub_token=canary-submitit"
    out = cluster.run(sys.executable, "-m", "lrrunner", "-m", *overrides, secret)
    batch = cluster.folder / "batch"
    with (batch / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["overrides"], row["state"], row["run_dir"]) for row in rows] == [
        ("optimizer=sgd", "finished", "000"),
        ("optimizer=adamw", "finished", "001"),
    ]
    assert "optimizer=adamw" in out
    for row in rows:
        assert json.loads((batch / row["run_dir"] / "suggestion.json").read_text())["world_size"] == 2
    assert len(list(batch.glob(".submitit/*/*_log.out"))) == 2, "two jobs of Slurm"
    assert not [path for path in batch.rglob("*") if path.is_file() and b"canary-submitit" in path.read_bytes()]
