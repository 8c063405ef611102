"""Record what fixed jobs write, and compare two recordings, to show that a change of the code changes no result.

    python scripts/compare_records.py record before      # with the code before the change
    python scripts/compare_records.py record after       # with the code after it
    python scripts/compare_records.py compare before after

`record` runs each job below in a fresh folder with the lrrunner of this Python, on CPUs, with fixed seeds. It keeps the
files of each run, batch and array directory, and what MLflow stores, one folder a job. Times, run ids and the path of
the folder are masked. It takes two minutes on two cores. `compare` prints a diff and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SINGLE_RUNS = {
    "default_1_rank": [],
    "default_2_ranks": ["launch.num_processes=2"],
    "accumulation": ["train.accumulation_steps=2", "launch.num_processes=2", "sweep.num_steps=20"],
    "confirmation": ["confirm.enabled=true", "sweep.num_steps=20"],
    "val_monitor": ["sweep.monitor=val", "sweep.num_steps=40"],
    "fsdp_2_ranks": ["train.fsdp=true", "launch.num_processes=2", "sweep.num_steps=20"],
    "repeats": ["sweep.repeats=2", "sweep.num_steps=20"],
}
TRACKED = ("default_1_rank", "default_2_ranks")
"""Single runs that log to MLflow, as the batch, the array and the resumed run do."""

BATCH = ["launch.num_processes=2", "optimizer=sgd,adamw", "data.global_batch_size=32,64,128", "sweep.num_steps=20"]
BATCH_STATE = {"salt": "00" * 16}
"""batch.json of a batch that is resumed before its first job: its salt decides the keys of the ledger."""

ARRAY = ["model.hidden_features=16,32,64", "sweep.num_steps=20"]
NUM_TASKS = 3

RESUMED = ["model=custom", "model._target_=interrupted.Net", "sweep.repeats=2", "sweep.num_steps=20"]
RESUMED_MODULE = '''
import os

from torch import nn


class Net(nn.Module):
    """Raises in forward number FAIL_AT."""

    def __init__(self):
        super().__init__()
        hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*hidden, nn.Linear(32, 10))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == int(os.environ.get("FAIL_AT", "0")):
            raise RuntimeError("interrupted")
        return self.layers(x)
'''

KEPT = {"config.yaml", "overrides.yaml", "suggestion.json"}
TABLES = {"records.csv", "trial_records.csv", "trials.csv", "summary.csv"}
LEDGER = "ledger.jsonl"

MASK = "(masked)"
MASKED_FIELDS = {"elapsed_s", "timestamp_ms", "seconds", "run_id"}
MASKED_TAGS = ("lrrunner.process", "mlflow.note.content", "mlflow.parentRunId", "mlflow.source.")
"""Prefixes of tags that differ from run to run, or with the place of the code."""

IMAGE_ID = re.compile(r"\+timestamp\+\d+\+[0-9a-f-]{36}")
"""What MLflow adds to the name of a logged image."""


def environment(**changes: str) -> dict[str, str]:
    """CPU ranks of one thread, without what a launcher around this script has set."""
    foreign = ("ACCELERATE_", "MLFLOW_", "PET_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    fixed = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | fixed | changes


def run(folder: Path, module: str, *arguments: str, expected_code: int = 0, **variables: str) -> str:
    """Run ``python -m module`` in a folder.

    Returns:
        Its standard output.

    Raises:
        RuntimeError: it exited with another code than the expected one.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(**variables), capture_output=True, text=True)
    if done.returncode != expected_code:
        raise RuntimeError(f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def single_run(folder: Path, *, overrides: Sequence[str]) -> None:
    """One sweep in ``run``."""
    run(folder, "lrrunner", "run.dir=run", *overrides)


def batch(folder: Path) -> None:
    """A batch of six jobs in ``batch``."""
    (folder / "batch").mkdir()
    (folder / "batch/batch.json").write_text(json.dumps(BATCH_STATE))
    run(folder, "lrrunner", "-m", "run.resume=batch", *BATCH)


def array(folder: Path, *, module: str) -> None:
    """What the tasks of slurm/array.sbatch run, and slurm/summary.sbatch after them, in ``array``."""
    for index in range(NUM_TASKS):
        fields = iter(run(folder, module, "task", "array", str(index), str(NUM_TASKS), *ARRAY).split("\0")[:-1])
        for directory in fields:
            arguments = [next(fields) for _ in range(int(next(fields)))]
            run(folder, "lrrunner", *arguments, f"run.dir={directory}")
    run(folder, module, "summary", "array", *ARRAY)


def resumed(folder: Path) -> None:
    """A run that fails in its second repeat, then goes on."""
    (folder / "interrupted.py").write_text(RESUMED_MODULE)
    job = [*RESUMED, "run.checkpoint_every_s=0"]
    run(folder, "lrrunner", *job, "run.dir=run", expected_code=1, FAIL_AT="27")
    run(folder, "lrrunner", *job, "run.resume=run")


def jobs(array_module: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Name of each job, and what runs it in a folder."""
    for name, overrides in SINGLE_RUNS.items():
        tracking = [] if name in TRACKED else ["tracking.enabled=false"]
        yield name, functools.partial(single_run, overrides=[*overrides, *tracking])
    yield "batch_of_6", batch
    yield "array_of_3", functools.partial(array, module=array_module)
    yield "resumed", resumed


def masked_table(text: str) -> str:
    """A CSV table without its times and run ids."""
    rows = csv.DictReader(io.StringIO(text))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows.fieldnames or (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(masked_fields(row) for row in rows)
    return stream.getvalue()


def masked_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, with the values of those that differ from run to run masked."""
    return {name: MASK if name in MASKED_FIELDS and value else value for name, value in fields.items()}


def masked_ledger(text: str) -> str:
    """The lines of a ledger in the order of their jobs, with their fields in the order of the file."""
    entries = [masked_fields(json.loads(line)) for line in text.splitlines()]
    return "".join(json.dumps(entry, indent=1) + "\n" for entry in sorted(entries, key=lambda entry: entry["job"]))


def mlflow_content(folder: Path) -> str:
    """Every MLflow run of a folder, as JSON: status, params, tags, metrics by step, names of artifacts."""
    connection = sqlite3.connect(folder / "mlflow.db")
    content = []
    for run_id, name, status, artifacts in connection.execute("SELECT run_uuid, name, status, artifact_uri FROM runs"):

        def rows(columns: str, table: str, run_id: str = run_id) -> list[tuple[Any, ...]]:
            query = f"SELECT {columns} FROM {table} WHERE run_uuid = ? ORDER BY {columns}"
            return connection.execute(query, [run_id]).fetchall()

        content.append(
            {
                "name": name,
                "status": status,
                "params": dict(rows("key, value", "params")),
                "tags": {key: masked_tag(key, value) for key, value in rows("key, value", "tags")},
                "metrics": [f"{key} {step} {value!r}" for key, step, value in rows("key, step, value", "metrics")],
                "artifacts": [IMAGE_ID.sub("", name) for name in files_below(Path(artifacts.removeprefix("file://")))],
            }
        )
    connection.close()
    return json.dumps(sorted(content, key=json.dumps), indent=1) + "\n"


def masked_tag(key: str, value: str) -> str:
    """The value of a tag, masked if it differs from run to run."""
    return MASK if key.startswith(MASKED_TAGS) else value


def files_below(folder: Path) -> list[str]:
    """The names of the files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def keep(folder: Path, kept: Path) -> None:
    """Write what is compared of a finished job's folder to ``kept``."""
    texts = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "mlartifacts" in path.parts:
            continue
        if path.name in KEPT:
            texts[name] = path.read_text()
        elif path.name in TABLES:
            texts[name] = masked_table(path.read_text())
        elif path.name == LEDGER:
            texts[name] = masked_ledger(path.read_text())
        elif path.name == "status.json":
            texts[name] = json.loads(path.read_text())["state"] + "\n"
    if (folder / "mlflow.db").exists():
        texts["mlflow.json"] = mlflow_content(folder)
    texts["files.txt"] = "".join(f"{name}\n" for name in files_below(folder) if "mlartifacts/" not in name)
    for name, text in texts.items():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        (kept / name).write_text(text.replace(str(folder), "FOLDER"))


def record(out: Path, *, array_module: str, only: Sequence[str]) -> None:
    """Run the jobs and keep what they write below ``out``.

    Raises:
        FileExistsError: ``out`` exists.
    """
    out.mkdir(parents=True)
    for name, job in jobs(array_module):
        if only and name not in only:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name).resolve()
            job(folder)
            keep(folder, out / name)
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)


def differences(before: Path, after: Path, *, only: Sequence[str] = ()) -> Iterator[str]:
    """Lines of a unified diff of two recordings, or of some jobs in them."""
    names = {*files_below(before), *files_below(after)}
    for name in sorted(name for name in names if not only or name.partition("/")[0] in only):
        old, new = (
            (folder / name).read_text().splitlines() if (folder / name).exists() else [] for folder in (before, after)
        )
        yield from difflib.unified_diff(old, new, f"{before}/{name}", f"{after}/{name}", lineterm="", n=1)


def main() -> int:
    """Read the arguments, then record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path, help="a new folder")
    recording.add_argument("--array-module", default="lrrunner.slurm.array", help="lrrunner.array in older code")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    for command in (recording, comparing):
        command.add_argument("--only", nargs="+", default=(), metavar="JOB", help="these jobs instead of all")
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.out, array_module=arguments.array_module, only=arguments.only)
        return 0
    lines = list(differences(arguments.before, arguments.after, only=arguments.only))
    print("\n".join(lines) if lines else "no differences")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
