"""CPU seconds of the default job, from the command to its exit, and of the imports below which it cannot fall.

User and system time of the whole process tree, on CPUs, with one thread a process, into an MLflow database that exists.
Prints the rows of startup.md. Several interpreters, each with its own lrrunner, take turns, so that a busy machine
slows all of them down:

    python scripts/benchmarks/startup.py --repeats 5 old/.venv/bin/python .venv/bin/python
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MLFLOW_CLIENT = "from mlflow import MlflowClient; MlflowClient('sqlite:///mlflow.db').search_experiments()"

COMMANDS = {
    "default job, 1 rank": ["-m", "lrrunner"],
    "default job, 1 rank, no tracking": ["-m", "lrrunner", "tracking.enabled=false"],
    "default job, 2 ranks": ["-m", "lrrunner", "launch.num_processes=2"],
    "`lrrunner --help`": ["-m", "lrrunner", "--help"],
    "floor: torch, accelerate": ["-c", "import torch, accelerate"],
    "floor: MLflow's client, sqlite": ["-c", MLFLOW_CLIENT],
    "floor: Hydra": ["-c", "import hydra, hydra.utils"],
}


def environment() -> dict[str, str]:
    """CPU ranks of one thread, without what a launcher around this script has set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MLFLOW_"))}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


def cpu_seconds(command: Sequence[str], *, folder: Path) -> float:
    """User and system time of a command and of all processes that it starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "pythons", nargs="*", default=[sys.executable], help="interpreters that lrrunner is installed in"
    )
    arguments = parser.parse_args()
    pythons = [Path(python).absolute() for python in arguments.pythons]
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(len(pythons))]
        for python, folder in zip(pythons, folders, strict=True):
            folder.mkdir()
            cpu_seconds([str(python), "-m", "lrrunner"], folder=folder)  # makes the database, and fills caches
        for title, command in COMMANDS.items():
            seconds = [
                [
                    cpu_seconds([str(python), *command], folder=folder)
                    for python, folder in zip(pythons, folders, strict=True)
                ]
                for _ in range(arguments.repeats)
            ]
            columns = [f"{statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in zip(*seconds, strict=True)]
            print(f"| {title} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
