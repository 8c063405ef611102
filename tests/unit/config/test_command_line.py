"""Arguments, sorted."""

from __future__ import annotations

from lrrunner.config.command_line import CommandLine, parse_command_line


def test_a_plain_run_is_no_flag() -> None:
    """`--run` asks Hydra for what it does anyway; Hydra would answer it by doing nothing."""
    command_line = parse_command_line(["--run", "-r", "model=cnn", "--config-name=mine"])
    assert command_line.hydra_flags == ()
    assert command_line.overrides == ("model=cnn",)
    assert command_line.options == ["--config-name", "mine"]


def test_the_arguments_of_a_job_repeat_it() -> None:
    """They are how a job travels to its ranks, and what a resumed run is started with."""
    command_line = parse_command_line(["-m", "-cd", "my conf", "model=cnn,mlp", "--config-name", "mine"])
    job = command_line.with_overrides(["model=cnn"])
    assert job.arguments == ["--config-dir", "my conf", "--config-name", "mine", "model=cnn"]
    assert parse_command_line(job.arguments) == CommandLine(
        overrides=("model=cnn",), config_dir="my conf", config_name="mine"
    )
