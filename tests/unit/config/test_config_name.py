"""``--config-dir D --config-name mine``: a primary configuration of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.config.command_line import parse_command_line
from lrrunner.slurm.array import summarize, task_arguments
from lrrunner.slurm.submit import num_checked_jobs
from tests.composing import composed, errors_of

MINE = """\
defaults: [config, _self_]
sweep: {num_steps: 40}
tracking: {enabled: false}
"""


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """The flags that choose ``mine.yaml``."""
    (tmp_path / "mine.yaml").write_text(MINE)
    return ["--config-dir", str(tmp_path), "--config-name", "mine"]


def test_a_primary_configuration_of_the_users_own_composes(options: list[str]) -> None:
    """It never did: the user's directory was added only after the primary configuration had been looked up."""
    config = composed(*options, "sweep.seed=3", "model=cnn")
    assert (config.sweep.num_steps, config.sweep.seed, config.tracking.enabled) == (40, 3, False)
    assert config.model["_target_"] == "lrrunner.tasks.models.Cnn"


def test_every_way_to_slurm_reads_it(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check, task and summary; the summary of an array composed the packaged configuration instead."""
    grid = [*options, "sweep.seed=1,2"]
    assert num_checked_jobs("array", grid) == 2
    assert list(task_arguments("runs/a", 0, 2, grid)) == [
        "runs/a/000",
        "6",
        *options,
        "sweep.seed=1",
        "tracking.enabled=false",
    ]
    (tmp_path / "runs").mkdir()
    assert summarize(tmp_path / "runs", parse_command_line(grid)) == 1
    assert "MLflow" not in capsys.readouterr().err, "mine.yaml turns tracking off"


def test_a_name_that_does_not_exist_is_reported(options: list[str]) -> None:
    """With and without a directory."""
    directory = options[1]
    assert errors_of("--config-dir", directory, "--config-name", "yours") == (
        f"--config-name must name a configuration, got yours; create {directory}/yours.yaml or correct the name",
    )
    assert errors_of("--config-name", "yours") == (
        "--config-name must name a configuration, got yours; name its directory with --config-dir",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sweep: {num_step: 3}", "sweep.num_step is not a configuration key; did you mean sweep.num_steps?"),
        ("sweep: {num_steps: many}", "sweep.num_steps must be a whole number, got many; correct the value"),
        ("sweep: {mode: log}", "sweep.mode must be one of exponential, linear; got log"),
        ("tracking: {enabled: maybe}", "tracking.enabled must be true or false, got maybe; correct the value"),
        ("sweep: {end_lr: null}", "sweep.end_lr must have a value, got null; leave it out to keep the default"),
    ],
)
def test_an_error_in_it_is_reported_with_key_and_file(options: list[str], content: str, message: str) -> None:
    """No override is to blame, so there was no key in the message."""
    (Path(options[1]) / "mine.yaml").write_text(f"defaults: [config, _self_]\n{content}\n")
    assert errors_of(*options) == (f"{message} (in mine, or in a file that it includes)",)


def test_one_that_does_not_begin_with_ours_is_reported(options: list[str]) -> None:
    """Without the schema nothing would be checked."""
    (Path(options[1]) / "mine.yaml").write_text("sweep: {num_steps: 40}\n")
    assert errors_of(*options) == (
        "--config-name must name a configuration that includes lrrunner's own, got mine; "
        "begin it with: defaults: [config, _self_]",
    )


def test_a_group_that_needs_an_option_is_reported() -> None:
    """Hydra raises a bare ValueError."""
    assert errors_of("loss=null") == ("loss must have a value, got null; leave it out to keep the default",)
