"""The command line, from arguments to an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.cli.main import run


def test_stage_a_reports_without_torch_and_exits_with_2(tmp_path: Path) -> None:
    """The whole path of a mistyped command: code 2, one message on stderr, no traceback, no torch, nothing written."""
    code = (
        "import sys\nfrom lrrunner.cli.main import run\n"
        "code = run(['sweep.start_lr=20', 'model=resnet'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "2 False"
    assert done.stderr.startswith("lrrunner: the configuration is wrong (2 errors)\n")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module",
    ["lrrunner.core.suggestion_rules", "lrrunner.cli.main", "lrrunner.launch.rank_command", "lrrunner.records"],
)
def test_the_light_modules_load_no_torch(module: str) -> None:
    """Help, completion and configuration errors must not cost the three seconds of torch, accelerate and MLflow."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'accelerate', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("flag", ["--config-path", "--package", "--experimental-rerun"])
def test_flags_without_a_meaning_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra would run its own empty task with them, and return 0."""
    assert run([f"{flag}=x"]) == 2
    assert f"{flag} is not supported" in capsys.readouterr().err


def test_a_secret_in_a_mistyped_override_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names what was typed, and terminals are logged."""
    assert run(["+x.api_token=canary-4711", "tracking.uri=ftp://ann:canary-4712@host/x"]) == 2
    shown = capsys.readouterr().err
    assert "canary" not in shown
    assert "x is not a configuration key" in shown
    assert "ftp://***@host/x" in shown


def test_a_batch_inside_ranks_is_refused_with_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that it shows is copied."""
    options = ["--config-dir", str(tmp_path), "--config-name", "mine"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run([*options, "-m", "sweep.seed=1,2"]) == 2
    command = f"lrrunner -m --config-dir {tmp_path} --config-name mine launch.num_processes=2 sweep.seed=1,2"
    assert command in capsys.readouterr().err


def test_the_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """It was Hydra's."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "lrrunner 0.1.0\n"


@pytest.mark.parametrize("flag", ["--help", "--info", "--cfg"])
def test_hydras_own_flags_work(tmp_path: Path, flag: str) -> None:
    """People who know Hydra expect them."""
    arguments = [flag, {"--cfg": "job", "--info": "defaults"}[flag]] if flag != "--help" else [flag]
    done = subprocess.run(
        [sys.executable, "-m", "lrrunner", *arguments, "model=cnn"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "lrrunner.tasks.models.Cnn" in done.stdout or flag == "--info"
    assert list(tmp_path.iterdir()) == []


def test_a_batch_for_submitit_goes_to_its_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    """Only it accepts the launcher's keys; a plain batch refuses all of them."""
    keys = ["hydra.launcher.nodes=1,2", "sweep.seed=1,2"]
    assert run(["-m", "hydra/launcher=submitit_slurm", *keys]) == 2
    assert "hydra.launcher must have one value for the whole batch" in capsys.readouterr().err
    assert run(["-m", "hydra/launcher=basic", *keys]) == 2
    assert "or choose submitit_slurm" in capsys.readouterr().err
