"""Start lrrunner the way people do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = Path(__file__).with_name("parts.py")

NO_TRACKING = ("tracking.enabled=false",)


@dataclass
class Finished:
    """A finished command."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def read(self, name: str) -> Any:
        """A JSON file of the run directory."""
        return json.loads((self.run / name).read_text())


def wait_for_rows(
    folder: Path, count: int, process: subprocess.Popen[str], *, name: str = "records.csv", timeout_s: float = 120
) -> None:
    """Until ``count`` rows of a table are in the run directory."""
    path = folder / "run" / name
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) > count, process, timeout_s=timeout_s)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], *, timeout_s: float = 120) -> None:
    """Until something has come of a started run; it must not end before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"still waiting after {timeout_s} s", *process.communicate())
        time.sleep(0.05)


def finish(process: subprocess.Popen[str], folder: Path, timeout_s: float = 120) -> Finished:
    """Wait for the end of a started run."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s\n{out}\n{err}") from None
    return Finished(process.returncode, out, err, folder)


def environment(**changes: str) -> dict[str, str]:
    """The test's environment without what a launcher around the tests might have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MLFLOW_", "PET_", "TORCHELASTIC"))}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | changes


def command(num_processes: int, overrides: Sequence[str]) -> list[str]:
    """argv of one process, or of ``accelerate launch`` for several."""
    if num_processes == 1:
        return [sys.executable, "-m", "lrrunner", *overrides]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", str(num_processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, "--main_process_port", "0", "-m", "lrrunner", *overrides]


def start(
    folder: Path, *overrides: str, num_processes: int = 1, new_session: bool = False, **env: str
) -> subprocess.Popen[str]:
    """Start a run in ``folder``, with the test's parts importable from there and the run directory called ``run``."""
    shutil.copy(PARTS, folder / "parts.py")
    return subprocess.Popen(
        command(num_processes, ["run.dir=run", *overrides]),
        cwd=folder,
        env=environment(ACCELERATE_USE_CPU="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def launch(folder: Path, *overrides: str, num_processes: int = 1, timeout_s: float = 240, **env: str) -> Finished:
    """Run to the end."""
    return finish(start(folder, *overrides, num_processes=num_processes, **env), folder, timeout_s)
