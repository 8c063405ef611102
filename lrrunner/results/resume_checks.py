"""Resuming an interrupted run: which directory qualifies, and what must be as it was. No torch."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrrunner.config.schema import RunConfig
from lrrunner.results.reader import read_config
from lrrunner.results.run_state import RunState, state_in
from lrrunner.results.status_file import read_status
from lrrunner.system.output.terminal import counted
from lrrunner.system.plain_values import flattened
from lrrunner.system.processes.process_identity import is_alive
from lrrunner.version import __version__

FREE_KEYS = ("run", "launch", "tracking.timeout_s")
"""Keys that may differ in a resumed run: they change neither what is measured nor where it is stored."""

MAX_SHOWN = 5


def code_versions() -> dict[str, str]:
    """Versions of the code that computes the records, for status.json."""
    return {"version": __version__, "torch_version": version("torch")}


def directory_errors(run: RunConfig) -> list[str]:
    """Why the run in ``run.resume`` cannot be resumed, as far as its directory shows.

    Args:
        run: The section ``run``; its ``resume`` is set.
    """
    assert run.resume is not None
    path = Path(run.resume).expanduser()
    if run.dir is not None and Path(run.dir).expanduser().resolve() != path.resolve():
        return [f"run.dir must be left out, or be run.resume={path}, got {run.dir}; leave it out"]
    if (path / "ledger.jsonl").exists() or (path / "batch.json").exists():
        return [f"run.resume must name a single run, got the batch {path}; repeat the batch's command, with -m"]
    status = read_status(path)
    state = state_in(status)
    if not read_config(path):
        return [f"run.resume must name a run directory, got {path}; leave it out to begin a new run"]
    identity = status.get("process")
    runs_here = state == RunState.RUNNING and status.get("host") == socket.gethostname()
    if runs_here and identity is not None and is_alive(identity):
        return [f"run.resume must name a run that is not running, got {path}; wait for its end, or end it"]
    return []


def is_finished(run: RunConfig) -> bool:
    """Whether ``run.resume`` names a run that has finished: nothing is left to measure."""
    return run.resume is not None and state_in(read_status(Path(run.resume).expanduser())) == RunState.FINISHED


def finished_differences(path: Path, config: Mapping[str, Any]) -> list[str]:
    """As :func:`differences`, for a run that has finished: only its configuration counts.

    What is null in a configuration that no rank has resolved may have become anything.
    """
    old, new = flattened(read_config(path)), flattened(config)
    inherited = {key: old.get(key, value) for key, value in new.items() if value == str(None)}
    return list(_config_differences(path, new | inherited, read_status(path)))


def differences(path: Path, config: Mapping[str, Any], *, world_size: int) -> list[str]:
    """What differs from the run to resume, so that its records could not continue: ranks, configuration, code.

    Args:
        path: The run directory.
        config: The resolved configuration as config.yaml would hold it, secrets masked.
        world_size: Number of ranks.
    """
    status = read_status(path)
    return [*_status_differences(status, world_size), *_config_differences(path, config, status)]


def _status_differences(status: Mapping[str, Any], world_size: int) -> Iterator[str]:
    must_continue = "run.resume must continue with"
    began_with = status.get("world_size", world_size)
    if began_with != world_size:
        ranks = counted(began_with, "rank")
        yield (
            f"{must_continue} {ranks}, as the run began, got {world_size}; set launch.num_processes={began_with}, or "
            f"start {began_with} with your launcher"
        )
    for name, current in code_versions().items():
        if (old := status.get(name, current)) != current:
            what = {"version": "lrrunner", "torch_version": "torch"}[name]
            yield f"{must_continue} {what} {old}, as the run began, got {current}; install it, or start a new run"


def _config_differences(path: Path, config: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[str]:
    old, new = flattened(read_config(path)), flattened(config)
    keys = [key for key in sorted(old.keys() | new.keys()) if not _is_free(key) and old.get(key) != new.get(key)]
    for key in keys[:MAX_SHOWN]:
        yield f"{key} must be {old.get(key, 'absent')} to resume {path}, got {new.get(key, 'nothing')}; set it to that"
    if len(keys) > MAX_SHOWN:
        yield f"{len(keys) - MAX_SHOWN} more keys differ from {path}/config.yaml; repeat the run's own command"
    if keys and status.get("command"):
        yield f"the run began with: {status['command']}; repeat that with run.resume={path}"


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
