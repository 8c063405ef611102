"""Batches whose jobs submitit queues."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
import yaml

from lrrunner.config.command_line import parse_command_line
from lrrunner.errors import ConfigError
from lrrunner.slurm import submitit_launcher
from lrrunner.system.output.redaction import Redactor
from tests.composing import composed


def test_submitit_keeps_to_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher may be set up as the cluster wants; the batch directory and the grid stay lrrunner's."""
    overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=1,2", "sweep.seed=1,2"]
    with pytest.raises(ConfigError) as caught:
        submitit_launcher.run_with_submitit(parse_command_line(overrides))
    assert caught.value.errors == (
        "hydra.launcher must have one value for the whole batch, got hydra/launcher=submitit_slurm "
        "hydra.launcher.nodes=1,2; give one",
    )
    monkeypatch.setattr(submitit_launcher, "PLUGIN", "hydra_plugins.nowhere")
    with pytest.raises(ConfigError) as caught:
        submitit_launcher.run_with_submitit(parse_command_line([overrides[0], "hydra.sweep.dir=x", "sweep.seed=1,2"]))
    assert [error.partition(",")[0] for error in caught.value.errors] == [
        "hydra.sweep.dir must be left to lrrunner in a batch",
        "hydra.launcher needs hydra-submitit-launcher",
    ]


def test_a_requeued_job_resumes_its_run(tmp_path: Path) -> None:
    """The queue may run a job twice; what has begun is resumed, and what has finished is left alone."""
    run = tmp_path / "o'brien ${x}" / "000"
    run.mkdir(parents=True)
    quoted = str(run).replace("'", "\\'").replace("${", "\\${")
    override = submitit_launcher.run_override(run)
    assert override == f"run.dir='{quoted}'"
    assert composed(override).run.dir == str(run)
    (run / "status.json").write_text('{"state": "running"}')
    assert submitit_launcher.run_override(run) == f"run.resume='{quoted}'"
    (run / "status.json").write_text('{"state": "finished"}')
    assert submitit_launcher.run_override(run) is None


def test_hydras_record_of_the_batch_keeps_no_secret(tmp_path: Path) -> None:
    """multirun.yaml holds all overrides; a batch without submitit has none."""
    path = tmp_path / "multirun.yaml"
    path.write_text("task: ['+tracking.tags.hub_token=canary']\n")
    submitit_launcher._mask(path, Redactor())
    assert yaml.safe_load(path.read_text()) == {"task": ["+tracking.tags.hub_token=***"]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_secret_across_the_lines_of_hydras_record_is_masked(tmp_path: Path) -> None:
    """YAML breaks long lines at their spaces: a bearer token stayed readable."""
    path = tmp_path / "multirun.yaml"
    secrets = ["x" * 70 + " Bearer " + "canary0" * 20, "correct horse battery staple " * 8 + "canary1"]
    overrides = [f"+tracking.tags.hdr='{secrets[0]}'", f"+model.db_password='{secrets[1]}'"]
    path.write_text(yaml.safe_dump({"hydra": {"overrides": {"task": overrides}}}))
    assert all(override not in path.read_text() for override in overrides), "the lines are broken"
    submitit_launcher._mask(path, Redactor.for_run({}, {}, overrides))
    assert "canary" not in path.read_text()
    assert yaml.safe_load(path.read_text())["hydra"]["overrides"]["task"][0].endswith("x Bearer ***'")


def test_what_holds_secrets_while_the_jobs_run_is_private(tmp_path: Path) -> None:
    """Hydra and submitit write with the user's umask."""
    submitit_launcher._make_private(tmp_path)
    (tmp_path / "multirun.yaml").write_text("written over by Hydra")
    assert stat.S_IMODE((tmp_path / "multirun.yaml").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".submitit").stat().st_mode) == 0o700


def test_hydra_takes_a_batch_directory_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes and interpolations in a path are no syntax, and Hydra's logging does not silence ours."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "o'brien ${x}"
    seen: list[int] = []
    sweep = [f"hydra.sweep.dir={submitit_launcher._quoted(directory)}", "hydra.sweep.subdir=."]
    submitit_launcher._hydra_multirun(["sweep.seed=1,2", *sweep], lambda cfg: seen.append(cfg.sweep.seed))
    assert seen == [1, 2]
    assert (directory / "multirun.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]
    assert not logging.getLogger("lrrunner.tracking.supervised_run").disabled
