"""What warm ranks save: jobs a minute of one batch against as many runs of ``accelerate launch``.

Both do the same ten sweeps, tracking on, into a database that exists already, on two CPU ranks. Repetitions alternate,
so that a busy machine hits both. Prints one row of warm_ranks.md a repetition.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def environment() -> dict[str, str]:
    """Two CPU ranks, one thread each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MLFLOW_"))}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def timed(argv: list[str], folder: Path) -> float:
    """Seconds that a command takes."""
    started = time.perf_counter()
    subprocess.run(argv, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def launched_one_by_one(folder: Path, seeds: range, common: list[str]) -> float:
    """Seconds for a run of ``accelerate launch`` after the other."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, *settings, "--main_process_port", "0", "-m", "lrrunner", *common]
    return sum(timed([*command, f"sweep.seed={seed}"], folder) for seed in seeds)


def one_batch(folder: Path, seeds: range, common: list[str]) -> float:
    """Seconds for the same jobs as a batch."""
    grid = f"sweep.seed=range({seeds.start},{seeds.stop})"
    return timed([sys.executable, "-m", "lrrunner", "-m", "launch.num_processes=2", *common, grid], folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="further overrides for every sweep")
    arguments = parser.parse_args()
    common = [*arguments.overrides]
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed([sys.executable, "-m", "lrrunner", "sweep.num_steps=12"], folder)  # makes the database
        for _ in range(arguments.repeats):
            seeds = range(arguments.jobs)
            cold, warm = launched_one_by_one(folder, seeds, common), one_batch(folder, seeds, common)
            ratios.append(cold / warm)
            per_minute = [60 * arguments.jobs / seconds for seconds in (cold, warm)]
            print(f"| {arguments.jobs} | {per_minute[0]:.1f} | {per_minute[1]:.1f} | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
