"""How a grid becomes checked jobs, and what makes two of them the same job."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.batch.points import batch_jobs, checked_points, job_key, job_overrides, labels, unique_keys
from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import expand_grid
from lrrunner.config.schema import Config
from lrrunner.errors import ConfigError
from lrrunner.system.plain_values import from_plain, to_plain
from tests.composing import composed

SALT = "00" * 16


def key(*overrides: str, salt: str = SALT) -> str:
    return job_key(composed(*overrides, world_size=None), salt=salt)


def test_jobs_that_differ_only_in_a_secret_are_two_jobs() -> None:
    """By its masked overrides, a resumed batch would take one that had never run for finished."""
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
    """Jobs that differ only in keys that do not count still are separate lines of the ledger."""
    assert unique_keys(["a", "b", "a"]) == ["a", "b", "a-2"]


def test_a_label_is_what_tells_jobs_apart() -> None:
    """Overrides that all jobs share are left out; a single job shows all of its own."""
    assert labels([("x=1", "model=mlp"), ("x=1", "model=cnn")]) == ["model=mlp", "model=cnn"]
    assert labels([("x=1", "model=mlp")]) == ["x=1 model=mlp"]
    assert labels([]) == []


def test_overrides_of_the_batch_are_not_the_jobs() -> None:
    """A job repeated by hand must not write into the batch directory."""
    overrides = [
        "run.dir=x",
        "++run.resume=y",
        "launch.concurrent=2",
        "hydra.verbose=true",
        "run.timeout_s=9",
        "model=cnn",
    ]
    assert job_overrides(overrides) == ["run.timeout_s=9", "model=cnn"]


def test_each_job_has_a_directory_in_the_batch_whatever_its_name(tmp_path: Path) -> None:
    """Quotes and interpolations in a path are plain text, also after the way through the job mailbox."""
    directory = tmp_path / "o'brien ${x}"
    command_line = parse_command_line(["--config-dir", str(tmp_path), "launch.concurrent=2", "sweep.seed=1,2"])
    points = expand_grid(command_line)
    configs = checked_points(points, command_line, gpus=())
    first, second = batch_jobs(points, configs, command_line, directory=directory, salt=SALT)
    assert (first.number, first.label, first.overrides) == (0, "sweep.seed=1", ("sweep.seed=1",))
    assert second.job.directory == directory / "001"
    assert from_plain(Config, to_plain(second.job.config)).run.dir == str(directory / "001")
    assert second.job.config.launch.concurrent == 1
    assert second.job.command_line.arguments == ["--config-dir", str(tmp_path), "sweep.seed=2"]
    assert first.key != second.key


def test_errors_name_the_points_that_they_concern() -> None:
    """One message for all errors; an error of every point stands alone."""
    command_line = parse_command_line(["sweep.num_steps=1,20", "sweep.end_lr=-1", "launch.concurrent=1,2"])
    with pytest.raises(ConfigError) as caught:
        checked_points(expand_grid(command_line), command_line, gpus=())
    end_lr, steps = caught.value.errors
    assert steps.startswith("sweep.num_steps must be at least 2, got 1; try 100 (in job 'sweep.num_steps=1 ")
    assert steps.endswith("', and in job 'sweep.num_steps=1 launch.concurrent=2')")
    assert end_lr.startswith("sweep.end_lr must exceed sweep.start_lr=1e-07, got -1")
    assert "(in job" not in end_lr


def test_a_key_of_the_batch_has_one_value() -> None:
    """One batch has one directory and one number of worker groups."""
    command_line = parse_command_line(["launch.concurrent=1,2"])
    with pytest.raises(ConfigError) as caught:
        checked_points(expand_grid(command_line), command_line, gpus=())
    assert caught.value.errors == ("launch.concurrent must be one value for the whole batch, got several; give one",)
