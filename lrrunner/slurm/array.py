"""A grid as a Slurm array: which points a task takes, and the summary once all tasks are over. No torch.

A task writes nothing but its own run directories, and leaves MLflow to the job behind the array: tasks that create one
database at once would crash each other.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from lrrunner.batch import ledger
from lrrunner.batch.ledger import Entry
from lrrunner.batch.state import update_state
from lrrunner.batch.summary_run import write_summary
from lrrunner.batch.summary_table import terminal_table
from lrrunner.cli import sync
from lrrunner.config.command_line import parse_command_line
from lrrunner.config.composition import compose_job, expand_grid
from lrrunner.config.serialization import to_plain
from lrrunner.errors import ConfigError
from lrrunner.results.reader import read_run
from lrrunner.results.run_state import RunState
from lrrunner.system import exit_codes
from lrrunner.system.redaction import Redactor


def main() -> NoReturn:
    """``python -m lrrunner.array task FOLDER INDEX COUNT words ...``, or ``summary FOLDER words ...``."""
    try:
        kind, folder, *words = sys.argv[1:]
        if kind == "task":
            index, count, *words = words
            sys.stdout.write("".join(f"{word}\0" for word in task_args(folder, int(index), int(count), words)))
            sys.exit(exit_codes.OK)
        sys.exit(summary(Path(folder), words))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_codes.CONFIG_ERROR)


def task_args(folder: str, index: int, count: int, words: Sequence[str]) -> Iterator[str]:
    """What one task of an array runs: for each point its directory, the number of its words, and these.

    Args:
        folder: Of the array.
        index: Number of the task, from 0.
        count: Number of tasks; task i takes the points i, i + count, ...
        words: Overrides with Hydra's sweeps in them, and Hydra's own flags.
    """
    line = parse_command_line(words)
    for number, point in list(enumerate(expand_grid(line)))[index::count]:
        own = [*line.options, *point, "tracking.enabled=false"]
        yield from (f"{folder}/{number:03d}", str(len(own)), *own)


def summary(folder: Path, words: Sequence[str]) -> int:
    """Read what the tasks have left: ledger, summary, pictures, and MLflow, where it is wanted.

    Returns:
        0 when every point has finished, else 1.
    """
    line = parse_command_line(words)
    points = expand_grid(line)
    configs = [compose_job(line.with_overrides(point), world_size=None) for point in points]
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        _entry(folder, number, tuple(map(Redactor.for_run(to_plain(config), {}, point).text, point)))
        for number, (point, config) in enumerate(zip(points, configs, strict=True))
    ]
    known = ledger.latest(ledger.read(folder))
    for entry in entries:
        if known.get(entry.key) != entry:
            ledger.append(folder, entry)
    finished = all(entry.state == RunState.FINISHED for entry in entries)
    update_state(folder, num_jobs=len(entries), state=RunState.FINISHED if finished else RunState.FAILED)
    write_summary(folder, entries)
    print(terminal_table(entries), flush=True)
    if configs[0].tracking.enabled:
        code = sync.run([str(folder)])
        if code:
            print(f"to bring it to MLflow later: {shlex.join(['lrrunner-sync', str(folder)])}", file=sys.stderr)
    return exit_codes.OK if finished else exit_codes.FAILED


def _entry(folder: Path, number: int, overrides: tuple[str, ...]) -> Entry:
    """How one point ended, as its run directory tells."""
    name = f"{number:03d}"
    run = read_run(folder / name)
    state = run.state or RunState.FAILED
    suggestion = run.test.suggestion if run.test and state == RunState.FINISHED else None
    return Entry(
        job=number,
        key=name,
        overrides=overrides,
        state=RunState.KILLED if state == RunState.RUNNING else state,
        run_id=run.status.get("mlflow_run_id"),
        run_dir=name if run.status else None,
        lr=suggestion.lr if suggestion else None,
        interval=suggestion.interval if suggestion else None,
        verdict=str(suggestion.verdict) if suggestion else None,
        best_loss=run.best_loss,
        seconds=round(run.records.steps[-1].elapsed_s, 3) if run.records.steps else 0.0,
        cause=run.status.get("cause") if run.status else "it never began; see its task's output",
    )


if __name__ == "__main__":
    main()
