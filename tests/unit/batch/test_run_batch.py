"""How a machine is shared among sets of ranks, and how a grid becomes jobs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins

from lrrunner.batch import ledger
from lrrunner.batch.ledger import Entry
from lrrunner.batch.run_batch import (
    _report,
    _run_with_our_launcher,
    batch_directory,
    exclusive_batch,
    register_launcher,
    run_grid,
)
from lrrunner.batch.scheduler import Batch, BatchJob, Slot, describe_outcome, new_slots, set_key
from lrrunner.batch.state import batch_lock, job_key, unique_keys, update_state
from lrrunner.batch.summary_run import connected, start_summary_run
from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import expand_grid, unescaped_override
from lrrunner.errors import ConfigError
from lrrunner.launch.job import Job
from lrrunner.results.run_state import RunState
from lrrunner.slurm import submitit_launcher
from lrrunner.system.job_log import wake_loggers
from lrrunner.system.redaction import Redactor
from tests.composing import composed


def test_sets_side_by_side_have_their_own_gpus() -> None:
    """Two sets on one GPU would slow each other down, or run out of its memory."""
    slots = new_slots(2, num_processes=2, gpus=("0", "1", "2", "3", "4"), cores=(0, 1))
    assert slots == [Slot(gpus=("0", "1"), cores=()), Slot(gpus=("2", "3"), cores=())]


def test_sets_side_by_side_have_their_own_cores() -> None:
    """Where there are GPUs for none of them; a set alone has all cores."""
    cores = (0, 1, 2, 3, 8)
    assert new_slots(2, num_processes=2, gpus=(), cores=cores) == [
        Slot(gpus=(), cores=(0, 1)), Slot(gpus=(), cores=(2, 3)),
    ]  # fmt: skip
    assert new_slots(1, num_processes=2, gpus=(), cores=cores) == [Slot(gpus=(), cores=())]
    assert new_slots(3, num_processes=1, gpus=(), cores=(0, 1)) == [Slot(gpus=(), cores=())] * 3


def job(*overrides: str) -> Job:
    command_line = parse_command_line(overrides)
    return Job(config=composed(*overrides, world_size=None), command_line=command_line).in_directory(Path("x"))


def test_what_jobs_must_share_to_share_ranks() -> None:
    """Accelerate's state is one per process; models and data are not."""
    same = set_key(job("launch.num_processes=2"))
    assert set_key(job("launch.num_processes=2", "model=cnn", "data.global_batch_size=128")) == same
    for other in ("train.mixed_precision=bf16", "train.compile=true", "launch.config_file=x.yaml"):
        assert set_key(job("launch.num_processes=2", other)) != same
    assert set_key(job("launch.num_processes=4")) != same


SALT = "00" * 16


def key(*overrides: str, salt: str = SALT) -> str:
    return job_key(composed(*overrides, world_size=None), salt=salt)


def test_jobs_that_differ_only_in_a_secret_are_two_jobs() -> None:
    """By their masked overrides, a resumed batch took one that had never run for finished."""
    one, other = key("+model.token=abcdef"), key("+model.token=ghijkl")
    assert one != other
    assert key("+model.token=abcdef", salt="11" * 16) != one


@pytest.mark.parametrize(
    "changes",
    [
        ("launch.timeout_s=5",),
        ("launch.concurrent=2",),
        ("tracking.enabled=false",),
        ("tracking.uri=sqlite:///other.db", "run.timeout_s=9"),
        ("++sweep.start_lr=0.00001", "model=cnn"),
    ],
)
def test_a_job_stays_the_same_job(changes: tuple[str, ...]) -> None:
    """However it is watched and recorded, and however its overrides are spelt and ordered."""
    assert key("model=cnn", "sweep.start_lr=1e-5", *changes) == key("model=cnn", "sweep.start_lr=1e-5")


def test_a_grid_may_ask_for_one_job_twice() -> None:
    """Jobs that differ only in what does not count still are as many lines."""
    assert unique_keys(["a", "b", "a"]) == ["a", "b", "a-2"]
    assert unique_keys(["a", "c"], earlier=["a", "b", "a-2"]) == ["a-3", "c"]


def test_a_finished_attempt_without_a_line_is_not_run_again(tmp_path: Path) -> None:
    """Whichever attempt it was: the batch was killed between the run's end and its line."""
    jobs = [BatchJob(number=n, label="x", job=job(f"sweep.seed={n}"), key=f"k{n}") for n in range(2)]
    update_state(tmp_path, attempts={"000": "k0", "000-2": "k0", "001": "k1"})
    for name, state in (("000", "killed"), ("000-2", "finished"), ("001", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps({"state": state, "mlflow_run_id": f"id-{name}"}))
    batch = Batch(tmp_path, [])
    assert batch._pending(jobs) == [jobs[1]]
    (entry,) = ledger.read(tmp_path)
    assert (entry.key, entry.run_dir, entry.state, entry.run_id) == ("k0", "000-2", "finished", "id-000-2")
    assert batch._pending(jobs) == [jobs[1]]


def test_grids_are_expanded_as_hydra_does(tmp_path: Path) -> None:
    """Lists, ranges, globs (also over the user's own directory), and values that are lists."""
    assert expand_grid(parse_command_line(["model=mlp,cnn", "sweep.seed=range(2)", "x=1"])) == [
        ("model=mlp", "sweep.seed=0", "x=1"), ("model=mlp", "sweep.seed=1", "x=1"),
        ("model=cnn", "sweep.seed=0", "x=1"), ("model=cnn", "sweep.seed=1", "x=1"),
    ]  # fmt: skip
    assert expand_grid(parse_command_line(["optimizer=glob(ada*)"])) == [
        ("optimizer=adagrad",), ("optimizer=adam",), ("optimizer=adamw",),
    ]  # fmt: skip
    assert expand_grid(parse_command_line(["model.hidden_sizes=[32],[64,64]"])) == [
        ("model.hidden_sizes=[32]",), ("model.hidden_sizes=[64,64]",),
    ]  # fmt: skip
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine_a.yaml").touch()
    (tmp_path / "experiment" / "mine_b.yaml").touch()
    points = expand_grid(parse_command_line(["--config-dir", str(tmp_path), "experiment=glob(mine_*)"]))
    assert points == [("experiment=mine_a",), ("experiment=mine_b",)]


def test_what_cannot_be_expanded_is_told() -> None:
    """All of it at once."""
    with pytest.raises(ConfigError) as caught:
        expand_grid(parse_command_line(["model", "a=b=c[", "sweep.seed=1,2"]))
    assert [error.partition(" is not an override")[0] for error in caught.value.errors] == ["'model'", "'a=b=c['"]
    with pytest.raises(ConfigError, match="the grid must have a point, got none from optimizer="):
        expand_grid(parse_command_line(["optimizer=glob(nothing*)"]))
    with pytest.raises(ConfigError, match="the grid cannot be expanded"):
        expand_grid(parse_command_line(["optimizer.lr=interval(0,1)"]))


def test_what_is_ours_in_a_batch_is_refused() -> None:
    """A batch directory that Hydra puts elsewhere, or another launcher, would lose the ledger."""
    words = ["hydra/launcher=basic", "hydra.sweep.dir=x", "+hydra/sweeper=optuna", "hydra.sweeper.max_batch_size=2"]
    with pytest.raises(ConfigError) as caught:
        run_grid(parse_command_line(words))
    assert caught.value.errors == (
        "hydra.launcher must be left to lrrunner in a batch, got hydra/launcher=basic; leave it out, "
        "or choose submitit_slurm",
        "hydra.sweep.dir must be left to lrrunner in a batch, got hydra.sweep.dir=x; give run.dir=...",
        "hydra.sweeper must be left to lrrunner in a batch, got +hydra/sweeper=optuna; leave it out",
        "hydra.sweeper.max_batch_size must be left to lrrunner in a batch, got hydra.sweeper.max_batch_size=2; "
        "leave it out",
    )


def test_submitit_keeps_to_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher may be set up as the cluster wants; where the batch lives, and what is swept, stays ours."""
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=1,2", "sweep.seed=1,2"]
    with pytest.raises(ConfigError) as caught:
        run_grid(parse_command_line(words))
    assert caught.value.errors == (
        "hydra.launcher must have one value for the whole batch, got hydra/launcher=submitit_slurm "
        "hydra.launcher.nodes=1,2; give one",
    )
    monkeypatch.setattr(submitit_launcher, "PLUGIN", "hydra_plugins.nowhere")
    with pytest.raises(ConfigError) as caught:
        run_grid(parse_command_line([words[0], "hydra.sweep.dir=x", "sweep.seed=1,2"]))
    assert [error.partition(",")[0] for error in caught.value.errors] == [
        "hydra.sweep.dir must be left to lrrunner in a batch",
        "hydra.launcher needs hydra-submitit-launcher",
    ]


def test_a_requeued_job_goes_on(tmp_path: Path) -> None:
    """The queue may run a job twice; what has begun is gone on with, and what has finished is left alone."""
    run = tmp_path / "o'brien ${x}" / "000"
    run.mkdir(parents=True)
    quoted = str(run).replace("'", "\\'").replace("${", "\\${")
    assert submitit_launcher.run_override(run) == f"run.dir='{quoted}'"
    word = submitit_launcher.run_override(run)
    assert word is not None
    assert composed(word).run.dir == str(run)
    (run / "status.json").write_text('{"state": "running"}')
    assert submitit_launcher.run_override(run) == f"run.resume='{quoted}'"
    (run / "status.json").write_text('{"state": "finished"}')
    assert submitit_launcher.run_override(run) is None


def test_a_batch_in_a_directory_that_is_in_use_names_the_way_on(tmp_path: Path) -> None:
    """Two commands with one run.dir: the second is told which key to change, and what to do later."""
    with batch_lock(tmp_path), pytest.raises(ConfigError) as caught, exclusive_batch(tmp_path, "run.dir"):
        pass
    assert caught.value.errors == (
        f"run.dir must name a directory where no batch is running, got {tmp_path}; wait for its end, "
        f"then go on with run.resume={tmp_path}",
    )


def test_hydra_takes_a_directory_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes and interpolations in a path are no syntax."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "o'brien ${x}"
    seen: list[int] = []
    _run_with_our_launcher(["sweep.seed=1,2"], [], directory, lambda words, first: seen.append(len(words)))
    assert seen == [2]
    wake_loggers()
    assert not logging.getLogger("lrrunner.tracking.supervised_run").disabled, "no warning of a batch would be seen"
    assert (directory / "multirun.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


def test_the_launcher_is_where_hydra_looks_for_it() -> None:
    """Hydra refuses a class that is not below hydra_plugins; a second registration is none."""
    register_launcher()
    register_launcher()
    assert "hydra_plugins.lrrunner_launcher.BatchLauncher" in Plugins.instance().class_name_to_class
    from hydra_plugins import lrrunner_launcher

    assert lrrunner_launcher.BatchLauncher.__module__ == "hydra_plugins.lrrunner_launcher"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1e-3, "interval": (5e-4, 2e-3), "verdict": "ok"}, "lr 1.0e-03   [5.0e-04, 2.0e-03]   ok   1.5 s"),
        ({"verdict": "flat"}, "lr none   flat   1.5 s"),
        ({"state": "failed", "cause": "rank 1: killed by SIGKILL"}, "failed: rank 1: killed by SIGKILL"),
    ],
)
def test_each_job_ends_with_a_line(changes: dict[str, object], words: str) -> None:
    """What a person watches."""
    settings: dict[str, object] = {"job": 0, "overrides": (), "state": RunState.FINISHED, "seconds": 1.5}
    assert describe_outcome(Entry(**(settings | changes))) == words  # type: ignore[arg-type]


def test_a_batch_removes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """A directory with anything in it is refused; the folder that is swept is ours by its name and by batch.json."""
    (tmp_path / "sets").mkdir()
    with pytest.raises(ConfigError, match=r"run\.dir must be new or empty for a batch, got .* with sets in it"):
        batch_directory(composed(f"run.dir={tmp_path}", world_size=None).run)
    left = tmp_path / ".lrrunner-sets" / "0123"
    left.mkdir(parents=True)
    with Batch(tmp_path, []):
        assert left.exists()
    update_state(tmp_path, lrrunner="0")
    with Batch(tmp_path, []):
        assert not left.exists()
    assert (tmp_path / "sets").exists()


def test_an_empty_directory_and_one_of_a_batch(tmp_path: Path) -> None:
    """The first takes a batch; the second goes on only when asked."""
    run = composed(f"run.dir={tmp_path}", world_size=None).run
    (tmp_path / ".lock").touch()
    assert batch_directory(run) == tmp_path
    update_state(tmp_path, lrrunner="0")
    with pytest.raises(ConfigError, match=r"run\.dir must not hold a batch yet, got .*; go on with run.resume="):
        batch_directory(run)
    assert batch_directory(composed(f"run.resume={tmp_path}", world_size=None).run) == tmp_path


@pytest.mark.parametrize(
    "word",
    [
        "tracking.uri=http://ann:CAN:ARY123@host:5000/a",
        "tracking.run_name=a b",
        "+model.text='x, y'",
        '+model.text="it\'s (a) [test]"',
        "model.hidden_sizes=[32,64]",
    ],
)
def test_a_point_shows_its_overrides_as_they_were_typed(word: str) -> None:
    """The sweeper's backslashes make commands unreadable, and hide passwords from whoever looks for them."""
    ((point,),) = expand_grid(parse_command_line([word]))
    assert unescaped_override(point) == word


@pytest.mark.parametrize(
    "broken", ["lrrunner.batch.run_batch.write_summary", "lrrunner.batch.run_batch.finish_summary_run"]
)
def test_a_page_ends_whatever_its_summary_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A picture that cannot be drawn once left the batch RUNNING."""
    for name in ("REQUEST_TIMEOUT", "REQUEST_MAX_RETRIES", "REQUEST_BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_{name}", "1")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.chdir(tmp_path)
    tracking = composed(world_size=None).tracking
    page = start_summary_run(tmp_path, tracking, command="lrrunner -m", redactor=Redactor())
    run = connected(tracking, Redactor())
    assert page is not None
    assert run is not None
    assert run.status(page) == "RUNNING"

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(broken, fail)
    entry = Entry(job=0, overrides=("sweep.seed=1",), key="a", state=RunState.FINISHED, verdict="flat")
    _report(tmp_path, [entry], tracking, Redactor(), RunState.FINISHED)
    assert run.status(page) == "FINISHED"
