"""The table of a batch, as literals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lrrunner.batch.ledger import Entry
from lrrunner.batch.summary.best_job import best_entry, why_no_best
from lrrunner.batch.summary.summary_table import (
    artifact_table,
    csv_text,
    describe_outcome,
    entry_labels,
    markdown_table,
    rows,
    swept_categories,
    swept_numbers,
)
from lrrunner.batch.summary.terminal_table import terminal_table
from lrrunner.results.run_state import RunState


def entry(
    job: int, *own: str, lr: float | None = 1e-3, state: RunState = RunState.FINISHED, **changes: object
) -> Entry:
    settings: dict[str, object] = {
        "job": job, "overrides": ("launch.num_processes=2", *own), "state": state, "run_id": f"r{job}",
        "run_dir": f"{job:03d}", "lr": lr, "interval": None if lr is None else (lr / 2, lr * 2),
        "verdict": "ok" if lr is not None else None, "best_loss": 0.25, "seconds": 1.5,
    }  # fmt: skip
    return Entry(**(settings | changes))  # type: ignore[arg-type]


FAILED = entry(
    1, "model=cnn", lr=None, state=RunState.FAILED, cause="rank 1: killed by SIGKILL", best_loss=None, run_dir=None
)


def test_a_label_is_what_tells_jobs_apart() -> None:
    """What all jobs share is left out."""
    assert entry_labels([entry(0, "model=mlp"), FAILED]) == ["model=mlp", "model=cnn"]
    assert entry_labels([entry(0, "model=mlp")]) == ["launch.num_processes=2 model=mlp"]
    assert entry_labels([]) == []


def test_csv() -> None:
    """Spreadsheets read it; what a job does not have stays empty."""
    assert csv_text([entry(0, "model=mlp"), FAILED]) == (
        "job,overrides,state,lr,lr_low,lr_high,verdict,best_loss,seconds,run_dir,run_id,cause\n"
        "0,model=mlp,finished,0.001,0.0005,0.002,ok,0.25,1.5,000,r0,\n"
        "1,model=cnn,failed,,,,,,1.5,,r1,rank 1: killed by SIGKILL\n"
    )


def test_terminal_table() -> None:
    """Columns line up, a failure says why."""
    flat = entry(2, "model=gpt", lr=None, verdict="flat")
    assert terminal_table([entry(0, "model=mlp"), FAILED, flat]) == (
        "job        lr       interval            verdict                            best loss  seconds\n"
        "model=mlp  1.0e-03  [5.0e-04, 2.0e-03]  ok                                 0.25       1.5\n"
        "model=cnn                               failed: rank 1: killed by SIGKILL             1.5\n"
        "model=gpt  none                         flat                               0.25       1.5"
    )


def test_a_table_fits_the_terminal() -> None:
    """Lines that the terminal breaks are no table; the numbers stay whole, and no two jobs look alike."""
    grid = [
        entry(number, f"optimizer={optimizer}", f"data.global_batch_size={size}", "model.hidden_features=32")
        for number, (optimizer, size) in enumerate([("sgd", 64), ("sgd", 256), ("adamw", 64)])
    ]
    wide = [entry(0, *grid[0].overrides[1:-1], "model.hidden_features=64"), *grid[1:]]
    assert terminal_table(wide, width=80) == (
        "job          lr       interval            verdict  best loss  seconds\n"
        "sgd 64 64    1.0e-03  [5.0e-04, 2.0e-03]  ok       0.25       1.5\n"
        "sgd 256 32   1.0e-03  [5.0e-04, 2.0e-03]  ok       0.25       1.5\n"
        "adamw 64 32  1.0e-03  [5.0e-04, 2.0e-03]  ok       0.25       1.5\n"
        "job: optimizer global_batch_size hidden_features"
    )


def test_a_cause_takes_the_place_of_the_numbers_it_lacks() -> None:
    """Of a job that did not finish; the whole cause is in its line above, and in summary.csv."""
    long = replace(
        FAILED, overrides=("launch.num_processes=2", f"model.path={'x' * 60}/last"), cause="rank 1: " + "y" * 60
    )
    lines = terminal_table([entry(0, "model=mlp"), long], width=80).splitlines()
    assert lines[1] == "model=mlp               1.0e-03  [5.0e-04, 2.0e-03]  ok       0.25       1.5"
    assert lines[2] == f"path=xxxxxx…xxxxx/last  failed: rank 1: {'y' * 30}…  1.5"
    assert max(map(len, lines)) <= 80


def test_markdown_is_cut_at_a_row() -> None:
    """MLflow's description holds 8000 characters."""
    text = markdown_table([entry(number, f"model.width={number}") for number in range(300)], run_url="#/runs/")
    assert text.startswith("| job | lr | interval | verdict | best loss | seconds |\n|---|---|---|---|---|---|\n")
    assert len(text) < 7500
    assert text.splitlines()[-1].endswith("more: see summary.csv")


def test_the_lowest_loss_is_marked_and_each_job_links_to_its_run() -> None:
    """A team lead sees which job is best, and opens it."""
    jobs = [entry(0, "model.width=64", best_loss=0.3), entry(1, "model.width=96", best_loss=0.2), FAILED]
    assert best_entry(jobs) is jobs[1]
    assert [row[4] for row in rows(jobs)] == ["0.3", "0.2 *", ""]
    lines = markdown_table(jobs, run_url="#/experiments/1/runs/").splitlines()
    assert lines[3].startswith("| [width=96](#/experiments/1/runs/r1) | 1.0e-03 | ")
    assert best_entry(jobs[1:]) is None, "one job is no comparison"


@pytest.mark.parametrize(
    "own",
    [
        ("data.global_batch_size=16", "data.global_batch_size=64"),
        ("loss.label_smoothing=0.1",),
        ("sweep.seed=1", "sweep.seed=2"),
        ("sweep.monitor=val", "sweep.monitor=train"),
        ("experiment=char_gpt", "experiment=mnist_lenet_luz"),
        ("+data.train.split=a", "data.train.split=b"),
    ],
)
def test_losses_that_measure_different_things_name_no_best_job(own: tuple[str, ...]) -> None:
    """A larger batch falls further in as many steps, a smoothed label never reaches zero, another seed is luck."""
    jobs = [entry(0, own[0], best_loss=0.3), entry(1, *own[1:], best_loss=0.2)]
    assert best_entry(jobs) is None
    assert [row[4] for row in rows(jobs)] == ["0.3", "0.2"]
    key = own[0].lstrip("+").partition("=")[0]
    assert why_no_best(jobs) == f"losses do not compare where jobs differ in {key}"


def test_the_artifact_has_numbers_to_sort_by() -> None:
    """Text would sort 1e-2 before 2e-3; a failed job has its cause."""
    table = artifact_table([entry(0, "model=mlp"), FAILED])
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {
        "job": "model=mlp", "lr": 1e-3, "lr_low": 5e-4, "lr_high": 2e-3, "verdict": "ok", "best_loss": 0.25,
        "seconds": 1.5, "state": "finished", "cause": None, "run_id": "r0",
    }  # fmt: skip
    assert table["data"][1][7:9] == ["failed", "rank 1: killed by SIGKILL"]


def test_swept_numbers_are_grouped_by_what_else_was_swept() -> None:
    """Batch sizes under two optimizers: two groups; seed and LR schedule of the sweep are no hyperparameters."""
    entries = [
        entry(0, "optimizer=sgd", "data.global_batch_size=16", "sweep.seed=0", lr=0.1),
        entry(1, "optimizer=sgd", "data.global_batch_size=64", "sweep.seed=1", lr=0.2),
        entry(2, "optimizer=adamw", "data.global_batch_size=256", "sweep.seed=2", lr=0.001),
    ]
    found = swept_numbers(entries)
    assert list(found) == ["data.global_batch_size"]
    points = found["data.global_batch_size"]
    assert [(point.value, point.lr, point.interval) for point in points] == [
        (16.0, 0.1, (0.05, 0.2)), (64.0, 0.2, (0.1, 0.4)), (256.0, 0.001, (0.0005, 0.002)),
    ]  # fmt: skip
    assert [point.group for point in points] == ["optimizer=sgd", "optimizer=sgd", "optimizer=adamw"]


def test_zero_and_text_are_no_points() -> None:
    """weight_decay=0 has no place on a log scale; with one value left there is no plot."""
    entries = [entry(i, f"optimizer.weight_decay={value}") for i, value in enumerate(("0", "0.01"))]
    assert swept_numbers(entries) == {}
    entries.append(entry(2, "optimizer.weight_decay=1"))
    assert [point.value for point in swept_numbers(entries)["optimizer.weight_decay"]] == [0.01, 1.0]
    assert swept_categories(entries) == {}, "a swept number is no name, also where one of its values is zero"


def test_swept_names_have_places_of_their_own() -> None:
    """Optimizers, say; a job without a suggestion has no point."""
    entries = [
        entry(0, "optimizer=sgd", "model.width=64", lr=0.1),
        entry(1, "optimizer=adamw", "model.width=64", lr=1e-3),
        entry(2, "optimizer=lion", "model.width=96", lr=None),
    ]
    (found,) = swept_categories(entries).values()
    assert found.names == ["sgd", "adamw", "lion"]
    assert [(point.value, point.lr, point.group) for point in found.points] == [
        (0.0, 0.1, "model.width=64"), (1.0, 1e-3, "model.width=64"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lr": 1e-3, "interval": (5e-4, 2e-3), "verdict": "ok"}, "lr 1.0e-03   [5.0e-04, 2.0e-03]   ok   1.5 s"),
        ({"verdict": "flat"}, "lr none   flat   1.5 s"),
        ({"state": RunState.FAILED, "cause": "rank 1: killed by SIGKILL"}, "failed: rank 1: killed by SIGKILL"),
        (
            {"state": RunState.FAILED, "cause": "rank 1: killed by SIGKILL", "run_dir": "003"},
            "failed: rank 1: killed by SIGKILL; see 003/ranks",
        ),
        ({"state": RunState.KILLED, "cause": "interrupted", "run_dir": "003"}, "killed: interrupted"),
    ],
)
def test_each_job_ends_with_a_line(changes: dict[str, object], line: str) -> None:
    """What a person sees while the batch runs."""
    settings: dict[str, object] = {"job": 0, "overrides": (), "state": RunState.FINISHED, "seconds": 1.5}
    assert describe_outcome(Entry(**(settings | changes))) == line  # type: ignore[arg-type]
