"""How a machine is split among worker groups, and which jobs a scheduler runs."""

from __future__ import annotations

import json
from pathlib import Path

from lrrunner.batch import ledger
from lrrunner.batch.points import BatchJob
from lrrunner.batch.scheduler import BatchScheduler, Slot, group_key, new_slots
from lrrunner.batch.state import update_state
from lrrunner.config.command_line import parse_command_line
from lrrunner.config.schema import TrackingConfig
from lrrunner.launch.job import Job
from lrrunner.results.run_state import JobResult, RunState
from lrrunner.tracking.supervised_run import SupervisedRuns
from tests.composing import composed


def test_worker_groups_side_by_side_have_their_own_gpus() -> None:
    """Two groups on one GPU would slow each other down, or run out of its memory."""
    slots = new_slots(2, num_processes=2, gpus=("0", "1", "2", "3", "4"), cores=(0, 1))
    assert slots == [Slot(gpus=("0", "1"), cores=()), Slot(gpus=("2", "3"), cores=())]


def test_worker_groups_side_by_side_have_their_own_cores() -> None:
    """Where there are no GPUs; a group alone has all cores."""
    cores = (0, 1, 2, 3, 8)
    assert new_slots(2, num_processes=2, gpus=(), cores=cores) == [
        Slot(gpus=(), cores=(0, 1)), Slot(gpus=(), cores=(2, 3)),
    ]  # fmt: skip
    assert new_slots(1, num_processes=2, gpus=(), cores=cores) == [Slot(gpus=(), cores=())]
    assert new_slots(3, num_processes=1, gpus=(), cores=(0, 1)) == [Slot(gpus=(), cores=())] * 3


class RecordedEnds(SupervisedRuns):
    """Records which runs are ended, without a store."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[str, RunState, bool]] = []

    def end(self, tracking: TrackingConfig, directory: Path, result: JobResult, **settings: object) -> str | None:
        """Record it; an end that ranks have not reported is uploaded."""
        self.ended.append((directory.name, result.state, result.is_reported))
        return None


def job(*overrides: str) -> Job:
    command_line = parse_command_line(overrides)
    return Job(config=composed(*overrides, world_size=None), command_line=command_line)


def test_what_jobs_must_share_to_share_ranks() -> None:
    """Accelerate's state is one for each process; models and data are not."""
    same = group_key(job("launch.num_processes=2"))
    assert group_key(job("launch.num_processes=2", "model=cnn", "data.global_batch_size=128")) == same
    for other in ("train.mixed_precision=bf16", "train.compile=true", "launch.config_file=x.yaml"):
        assert group_key(job("launch.num_processes=2", other)) != same
    assert group_key(job("launch.num_processes=4")) != same


def test_a_finished_attempt_without_a_ledger_line_is_not_run_again(tmp_path: Path) -> None:
    """Whichever attempt it was: the batch was killed between the run's end and its line."""
    jobs = [
        BatchJob(
            number=number, label="x", short_label="x", job=job(f"sweep.seed={number}", "run.dir=x"), key=f"k{number}"
        )
        for number in range(2)
    ]
    update_state(tmp_path, attempts={"000": "k0", "000-2": "k0", "001": "k1"})
    for name, state in (("000", "killed"), ("000-2", "finished"), ("001", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps({"state": state, "mlflow_run_id": f"id-{name}"}))
    runs = RecordedEnds()
    scheduler = BatchScheduler(tmp_path, [], mlflow_runs=runs)
    assert scheduler._pending(jobs) == [jobs[1]]
    (entry,) = ledger.read(tmp_path)
    assert (entry.key, entry.run_dir, entry.state, entry.run_id) == ("k0", "000-2", "finished", "id-000-2")
    assert scheduler._pending(jobs) == [jobs[1]]
    assert runs.ended == [("000-2", RunState.FINISHED, False)], "and MLflow gets what it lacks, once"


def test_a_scheduler_removes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """The folder of mailboxes is ours by its name and by batch.json."""
    left = tmp_path / ".lrrunner-sets" / "0123"
    left.mkdir(parents=True)
    with BatchScheduler(tmp_path, []):
        assert left.exists()
    update_state(tmp_path, lrrunner="0")
    with BatchScheduler(tmp_path, []):
        assert not left.exists()
