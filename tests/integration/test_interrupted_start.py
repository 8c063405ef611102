"""Ctrl-C and SIGTERM before the first step: no traceback of an import, but what the command did and how to start it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.launching import NO_TRACKING, Finished, environment, finish, start, start_command, wait_until

SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
TWO = "launch.num_processes=2"
SLOW_BUILD = ("model=custom", "model._target_=parts.SlowToBuild")


def imports_torch(pid: int) -> bool:
    """Whether a process is importing torch, or has."""
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def runs_module(process: psutil.Process, name: str) -> bool:
    """Whether a process that still exists was started with ``-m name``."""
    try:
        return bool(name in process.cmdline()[:4])
    except psutil.Error:  # it has just ended
        return False


def assert_start_is_interrupted(done: Finished, *, code: int, command: str) -> None:
    assert done.code == code, done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("2 ranks")]
    assert lines == ["interrupted:  before the first step; nothing is recorded", f"start again:  {command}"]
    assert done.err == ""
    assert not (done.folder / "run").exists()


@SIGNALS
def test_one_process_that_imports_torch_says_how_to_start_again(tmp_path: Path, number: int, code: int) -> None:
    """Most of the time until the first step is the import of torch, where Ctrl-C raised KeyboardInterrupt."""
    process = start_command(tmp_path, *NO_TRACKING)
    wait_until(lambda: imports_torch(process.pid), process)
    process.send_signal(number)
    done = finish(process, tmp_path)
    assert_start_is_interrupted(done, code=code, command="lrrunner run.dir=run tracking.enabled=false")


def test_the_imports_of_the_command_line_are_covered(tmp_path: Path) -> None:
    """Hydra takes a third of a second, before any code of lrrunner's own runs."""
    hydra = tmp_path / "hydra"
    hydra.mkdir()
    (hydra / "__init__.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    env = environment(PYTHONPATH=str(tmp_path))
    program = "from lrrunner.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "model=mlp", "+model.api_key=canary"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.splitlines()[-1] == "start again:  lrrunner model=mlp +model.api_key=***"


@SIGNALS
def test_supervised_ranks_that_import_torch_end_at_once(tmp_path: Path, number: int, code: int) -> None:
    """Their tracebacks went through the supervisor's pipes to the terminal."""
    process = start_command(tmp_path, *NO_TRACKING, TWO)

    def ranks_import_torch() -> bool:
        below = psutil.Process(process.pid).children(recursive=True)
        ranks = [child.pid for child in below if runs_module(child, "lrrunner.worker.warm_rank")]
        return len(ranks) == 2 and all(map(imports_torch, ranks))

    wait_until(ranks_import_torch, process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    done = finish(process, tmp_path)
    assert_start_is_interrupted(done, code=code, command=f"lrrunner run.dir=run tracking.enabled=false {TWO}")
    assert psutil.wait_procs(below, timeout=5)[1] == []


def test_a_rank_of_accelerate_launch_prints_no_traceback_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C reaches the launcher too, whose own traceback is not ours to hide."""
    _, *arguments = start_arguments = ["-m", "lrrunner", "run.dir=run", *NO_TRACKING]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    process = subprocess.Popen(
        [*launcher, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", *start_arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip

    def rank_imports_torch() -> bool:
        children = psutil.Process(process.pid).children()
        return any(runs_module(child, "lrrunner") and imports_torch(child.pid) for child in children)

    wait_until(rank_imports_torch, process)
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process, tmp_path)
    assert done.out.splitlines()[1:] == [f"start again:  {shlex.join(arguments)}"]
    assert "lrrunner/" not in done.err


@pytest.mark.parametrize(
    ("num_processes", "overrides"),
    [(1, ()), (2, ()), pytest.param(1, (TWO,), marks=pytest.mark.long)],
    ids=["one", "two", "supervised"],
)
def test_components_that_are_built_are_not_waited_for(
    tmp_path: Path, num_processes: int, overrides: tuple[str, ...]
) -> None:
    """A data set that downloads for an hour: there is nothing to save yet, and nothing is left."""
    process = start(tmp_path, *NO_TRACKING, *SLOW_BUILD, *overrides, num_processes=num_processes)
    wait_until((tmp_path / "building").exists, process)
    process.send_signal(signal.SIGINT)
    done = finish(process, tmp_path, timeout_s=30)
    arguments = f"lrrunner run.dir=run {' '.join([*NO_TRACKING, *SLOW_BUILD, *overrides])}"
    launcher = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m "
    assert_start_is_interrupted(
        done, code=130 if num_processes == 1 else 1, command=(launcher if num_processes > 1 else "") + arguments
    )
