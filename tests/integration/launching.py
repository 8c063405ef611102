"""Start lrrunner: forked from a server that has imported it, or by a command as people do.

:func:`start` and :func:`launch` fork: 1 CPU second a job, and ranks are started as an agent of torchrun starts them.
:func:`start_command` and :func:`launch_command` start new interpreters and the real ``accelerate launch``: 5 to 15 CPU
seconds, for tests of what only these show.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import lrrunner
from tests.fork_server import fork_context

PARTS = Path(__file__).with_name("parts.py")

NO_TRACKING = ("tracking.enabled=false",)

LAUNCHER_VARIABLES = ("ACCELERATE_", "MLFLOW_", "PET_", "TORCHELASTIC")
"""Beginnings of variables that a launcher around the tests may have set."""

STUB_RANKS = "tests.stub_rank"
"""Rank program without torch, for tests whose subject is the supervisor."""

REAL_RANKS = "lrrunner.worker.warm_rank"

STUB_OR_REAL = pytest.mark.parametrize(
    "rank_program", [pytest.param(STUB_RANKS, id="stub"), pytest.param(REAL_RANKS, id="real", marks=pytest.mark.long)]
)
"""For a test of a supervisor: on real ranks too with ``--long``."""

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02


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


class ForkedRun:
    """A forked job on one or several ranks, used like a ``subprocess.Popen``.

    Like torchrun, it ends all ranks when one has failed, and its exit code is then 1. A job of one process has the exit
    code of that process.

    Args:
        processes: Started, by rank.
        output: Folder of the files ``out`` and ``err`` that they write to.
        store: Kept for as long as the ranks may use it.
    """

    def __init__(self, processes: Sequence[ForkServerProcess], output: Path, store: TCPStore | None) -> None:
        self.processes = list(processes)
        self._output, self._store = output, store

    @property
    def pid(self) -> int:
        """Of rank 0."""
        return self._pids()[0]

    @property
    def returncode(self) -> int | None:
        """Exit code, None while a rank runs."""
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            return None
        return codes[0] if len(codes) == 1 else int(any(codes))

    def poll(self) -> int | None:
        """Exit code, None while a rank runs; ranks left by a failed one are ended."""
        if any(process.exitcode for process in self.processes):
            for process in self.processes:
                if process.exitcode is None:
                    process.terminate()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end.

        Returns:
            Standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked lrrunner", timeout or 0)
            time.sleep(POLL_S)
        for process in self.processes:
            process.join()
        out, err = ((self._output / name).read_text(errors="replace") for name in ("out", "err"))
        shutil.rmtree(self._output, ignore_errors=True)
        self._store = None
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal to every rank that runs."""
        for process, pid in zip(self.processes, self._pids(), strict=True):
            if process.exitcode is None:
                os.kill(pid, number)

    def terminate(self) -> None:
        """Ask every rank to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every rank at once."""
        self.send_signal(signal.SIGKILL)

    def _pids(self) -> list[int]:
        pids = [process.pid for process in self.processes if process.pid is not None]
        assert len(pids) == len(self.processes), "not started"
        return pids


Run = ForkedRun | subprocess.Popen[str]
"""A job that was started."""


def wait_for_rows(folder: Path, count: int, process: Run, *, name: str = "records.csv", timeout_s: float = 120) -> None:
    """Until ``count`` rows of a table are in the run directory."""
    path = folder / "run" / name
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) > count, process, timeout_s=timeout_s)


def wait_until(condition: Callable[[], Any], process: Run, *, timeout_s: float = 120) -> None:
    """Until a condition holds of a started job, which must not end before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"still waiting after {timeout_s} s", *process.communicate())
        time.sleep(POLL_S)


def finish(process: Run, folder: Path, timeout_s: float = 120) -> Finished:
    """Wait for the end of a started job."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s\n{out}\n{err}") from None
    assert process.returncode is not None
    return Finished(process.returncode, out, err, folder)


def environment(**changes: str) -> dict[str, str]:
    """The test's environment without what a launcher around the tests might have set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_VARIABLES)}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | changes


def start(
    folder: Path,
    *overrides: str,
    num_processes: int = 1,
    new_session: bool = False,
    fresh_database: bool = False,
    rank_program: str | None = None,
    env: Mapping[str, str] | None = None,
) -> ForkedRun:
    """Fork a job.

    Args:
        folder: Its working directory; the test's parts can be imported from there, the run directory is called ``run``.
        overrides: Of the command line.
        num_processes: Number of ranks, started as an agent of torchrun starts them.
        new_session: Begin a session, so that the process group can be sent signals.
        fresh_database: Let the job make MLflow's database, which takes a second, instead of giving it an empty one.
        rank_program: What the ranks of a supervisor run, instead of lrrunner's own program.
        env: Further environment variables.
    """
    _prepare(folder, overrides, fresh_database=fresh_database)
    settings = environment(ACCELERATE_USE_CPU="1", PYTHONPATH=str(ROOT), **(env or {}))
    store, rank_settings = _agent(num_processes) if num_processes > 1 else (None, [{}])
    output = Path(tempfile.mkdtemp(prefix="lrrunner-test-"))
    arguments = ["run.dir=run", *overrides]
    processes = [
        fork_context().Process(
            target=_run_main, args=(arguments, folder, settings | own, output, new_session, rank_program)
        )
        for own in rank_settings
    ]
    for process in processes:
        process.start()
    return ForkedRun(processes, output, store)


def launch(
    folder: Path,
    *overrides: str,
    num_processes: int = 1,
    fresh_database: bool = False,
    rank_program: str | None = None,
    timeout_s: float = 240,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Fork a job and wait for its end."""
    run = start(
        folder,
        *overrides,
        num_processes=num_processes,
        fresh_database=fresh_database,
        rank_program=rank_program,
        env=env,
    )
    return finish(run, folder, timeout_s)


def command(num_processes: int, overrides: Sequence[str]) -> list[str]:
    """argv of one process, or of ``accelerate launch`` for several."""
    if num_processes == 1:
        return [sys.executable, "-m", "lrrunner", *overrides]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", str(num_processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, "--main_process_port", "0", "-m", "lrrunner", *overrides]


def start_command(
    folder: Path,
    *overrides: str,
    num_processes: int = 1,
    fresh_database: bool = False,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start ``python -m lrrunner``, or ``accelerate launch`` for several ranks; else as :func:`start`."""
    _prepare(folder, overrides, fresh_database=fresh_database)
    return subprocess.Popen(
        command(num_processes, ["run.dir=run", *overrides]),
        cwd=folder,
        env=environment(ACCELERATE_USE_CPU="1", **(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch_command(
    folder: Path,
    *overrides: str,
    num_processes: int = 1,
    fresh_database: bool = False,
    timeout_s: float = 240,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """:func:`start_command`, to the end."""
    process = start_command(folder, *overrides, num_processes=num_processes, fresh_database=fresh_database, env=env)
    return finish(process, folder, timeout_s)


def _prepare(folder: Path, overrides: Sequence[str], *, fresh_database: bool) -> None:
    shutil.copy(PARTS, folder / "parts.py")
    database = folder / "mlflow.db"
    elsewhere = any(override in NO_TRACKING or override.startswith("tracking.uri=") for override in overrides)
    if not (fresh_database or elsewhere or database.exists()):
        shutil.copy(_empty_database(), database)


@functools.cache
def _empty_database() -> Path:
    """A database of MLflow that holds no runs, made once."""
    path = Path(tempfile.mkdtemp(prefix="lrrunner-test-")) / "mlflow.db"
    process = fork_context().Process(target=_make_database, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return path


def _make_database(path: Path) -> None:
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()


def _agent(num_processes: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """The store through which ranks meet, which outlives them, and what an agent of torchrun tells each of them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "WORLD_SIZE": f"{num_processes}",
        "LOCAL_WORLD_SIZE": f"{num_processes}",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
    }
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{store.port}", "ACCELERATE_MIXED_PRECISION": "no"}
    world |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return store, [world | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(num_processes)]


def _run_main(
    arguments: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    output: Path,
    new_session: bool,
    rank_program: str | None,
) -> None:
    """The command line in a forked process."""
    if new_session:
        os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # TMPDIR may be another than the server's
    os.chdir(folder)
    sys.argv = [str(Path(lrrunner.__file__).with_name("__main__.py")), *arguments]
    from lrrunner.cli.main import main
    from lrrunner.launch import job, rank_command

    if rank_program is not None:
        vars(job)["RankPlan"] = functools.partial(rank_command.RankPlan, rank_program=rank_program)
    main()
