"""Scores suggestion rules on what measure_oracle.py has measured: python scripts/benchmarks/score_oracle.py.

``oracle/README.md`` says what regret and its noise floor are. Nothing is trained here; a job that lacks a measurement
is left out of the table that needs it, and each table says how many jobs it is over.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from oracle.bowls import Bowl, TrialTable, bowl, interval_of_mean  # noqa: E402 - the benchmark's own modules lie beside it
from oracle.catalog import Job, jobs  # noqa: E402
from oracle.comparisons import Regrets, paired_difference, regrets_by_kind  # noqa: E402
from oracle.confirmation import confirmed_suggestion  # noqa: E402
from oracle.lr_free import LR_FREE  # noqa: E402
from oracle.optimizers import CLASSES  # noqa: E402
from oracle.replay import MissingError  # noqa: E402
from oracle.scores import SWEEP_SEEDS, TRIAL_SEEDS, Measured, Scores, scores, told_range_test  # noqa: E402
from oracle.store import Store, lr_at  # noqa: E402
from peer_packages import sources  # noqa: E402
from regret_peers import PEERS  # noqa: E402

from lrrunner.records import Suggestion, Training  # noqa: E402

MEASUREMENTS = HERE / "oracle" / "measurements"
SWEEP_LENGTHS = (30, 50, 100, 200, 400, 1000)
TRAININGS = (
    (400, "constant"),
    (400, "cosine"),
    (400, "linear"),
    (1000, "constant"),
    (1000, "cosine"),
    (5000, "constant"),
    (5000, "cosine"),
)
REFERENCE = Training(num_steps=400)
SWEEP, CONFIRMED = "auto", "auto, confirmed with 500 steps"
CHOSEN = (
    SWEEP,
    CONFIRMED,
    "peer: ignite",
    "peer: fastai_valley",
    "the optimizer's usual LR",
    "0.01 always",
    "600 steps of successive halving",
    "600 steps of random search",
    "600 steps of coarse grid",
    *LR_FREE,
)
"""Rules of the tables that have a column a rule."""

NEARLY_BEST = 0.015


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS)
    parser.add_argument("--jobs", action="store_true", help="list every job as well")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw regret against steps on the test jobs")
    arguments = parser.parse_args()
    measured = [Measured(job, Store(arguments.measurements / f"{job.name}.jsonl")) for job in jobs()]
    measured = [each for each in measured if each.store.initial]
    for title, group in groups(measured):
        print(f"## {title}\n")
        by_training = {training: scores(group, *training) for training in TRAININGS}
        report_rules(by_training[400, "constant"])
        report_trainings(by_training)
        report_lengths(group)
        report_intervals(group)
        report_kinds(by_training[400, "constant"], [job for job, _ in group])
    if arguments.jobs:
        report_jobs(measured)
    if arguments.figure:
        from steps_figure import draw_steps

        draw_steps([each for each in measured if each.job.is_test], arguments.figure)


def groups(measured: Sequence[Measured]) -> Iterable[tuple[str, list[Measured]]]:
    """Development jobs and test jobs."""
    for title, is_test in (("Development jobs", False), ("Test jobs", True)):
        yield title, [each for each in measured if each.job.is_test == is_test]


def report_rules(found: Scores) -> None:
    """Print every rule on trainings of 400 steps at a constant LR, and its paired differences to lrrunner's."""
    table, floors = found
    print(f"{len(floors)} jobs, {len(SWEEP_SEEDS)} sweeps of 100 steps each, trainings of 400 steps at a constant LR; ")
    print(f"noise floor {np.nanmean(floors):.4f}, at worst {np.nanmax(floors):.3f}; {sources(PEERS)}\n")
    print(
        "| rule | jobs | mean regret | 95 % interval | median | worst job | more than auto, paired by job | "
        "more than confirmed auto |\n|---|---|---|---|---|---|---|---|"
    )
    for rule, by_job in sorted(table.items(), key=lambda item: float(np.mean([v[0] for v in item[1].values()]))):
        values = [value[0] for value in by_job.values()]
        low, high = interval_of_mean(by_job)
        row = f"{rule} | {len(values)} | {np.mean(values):.4f} | {low:.4f} to {high:.4f}"
        print(f"| {row} | {np.median(values):.4f} | {max(values):.3f} | {_difference(table, rule, SWEEP)} | ", end="")
        print(f"{_difference(table, rule, CONFIRMED)} |")
    print()


def _difference(table: Regrets, rule: str, reference: str) -> str:
    if rule == reference or reference not in table:
        return ""
    mean, low, high = paired_difference(table, rule, reference)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def report_trainings(by_training: Mapping[tuple[int, str], Scores]) -> None:
    """Print the main rules by length and schedule of the training."""
    print(f"| training | jobs | noise floor | {' | '.join(CHOSEN)} |\n|---|---|---|{'---|' * len(CHOSEN)}")
    for (num_steps, schedule), (table, floors) in by_training.items():
        if floors:
            cells = []
            for rule in CHOSEN:
                values = [value[0] for value in table.get(rule, {}).values()]
                cells.append(f"{np.mean(values):.4f} / {max(values):.3f}" if len(values) == len(floors) else "")
            print(f"| {num_steps}, {schedule} | {len(floors)} | {np.nanmean(floors):.4f} | {' | '.join(cells)} |")
    print("\nmean / worst job\n")


def report_lengths(group: Sequence[Measured]) -> None:
    """Print `auto` by length of its sweep, on the jobs that have all lengths."""
    rows: dict[int, list[tuple[Any, ...]]] = {}
    for job, store in group:
        found = bowl(store, 400, "constant")
        if found is None:
            continue
        try:
            by_length = {
                n: [told_range_test(store, job, n, seed, REFERENCE).suggestion.lr for seed in SWEEP_SEEDS]
                for n in SWEEP_LENGTHS
            }
        except MissingError:
            continue
        for num_steps, lrs in by_length.items():
            logs = [math.log10(lr) for lr in lrs if lr is not None]
            best = math.log10(lr_at(found.best_position))
            distance, spread = (np.median(logs) - best, np.std(logs)) if logs else (math.nan, math.nan)
            rows.setdefault(num_steps, []).append((found.regret(lrs).mean(), distance, spread, len(lrs) - len(logs)))
    if not rows:
        return
    print(
        "| steps of the sweep | jobs | mean regret of auto | worst | decades from the best, median "
        "(quartiles) | standard deviation over sweep seeds, decades | none |"
    )
    print("|---|---|---|---|---|---|---|")
    for num_steps, values in rows.items():
        regrets, distances, spreads, none = np.array(values).T
        low, middle, high = np.nanquantile(distances, [0.25, 0.5, 0.75])
        cells = f"{num_steps} | {len(regrets)} | {regrets.mean():.4f} | {regrets.max():.3f}"
        cells += f" | {middle:+.2f} ({low:+.2f}, {high:+.2f})"
        print(f"| {cells} | {np.nanmean(spreads):.2f} | {none.sum():.0f} |")
    print()


def report_intervals(group: Sequence[Measured]) -> None:
    """Print, by thirds of the intervals' width, how many hold an LR of nearly the best regret, and what was expected.

    For the sweep alone and after 500 steps of confirmation runs, at every length and schedule together.
    """
    for title, find in ((SWEEP, _of_sweeps), (CONFIRMED, _confirmed)):
        rows = []
        for (job, store), (num_steps, schedule) in itertools.product(group, TRAININGS):
            oracle = bowl(store, num_steps, schedule)
            if oracle is not None:
                found = find(store, job, Training(num_steps=num_steps, schedule=schedule))
                rows += [_calibration(oracle, each) for each in found if each.lr is not None]
        if not rows:
            continue
        print(
            f"| {title}: width of the interval | number | hold an LR within {NEARLY_BEST} | expected regret | regret |"
        )
        print("|---|---|---|---|---|")
        table = np.array(sorted(rows))
        for third in (*np.array_split(table, 3), table):
            widths = f"{third[0, 0]:.2f} to {third[-1, 0]:.2f} decades"
            _, hits, expected, lost = third.mean(axis=0)
            print(f"| {widths} | {len(third)} | {hits:.0%} | {expected:.3f} | {lost:.3f} |")
        print()


def _calibration(oracle: Bowl, found: Suggestion) -> tuple[float, bool, float, float]:
    """Width in decades, whether the interval holds an LR that is nearly the best, expected and actual regret."""
    low, high = found.interval or (math.nan, math.nan)
    inside = float(oracle.regret(np.geomspace(low, high, 40).tolist()).min())
    return (
        math.log10(high / low),
        inside <= NEARLY_BEST,
        found.expected_regret or 0.0,
        float(oracle.regret([found.lr])[0]),
    )


def _of_sweeps(store: Store, job: Job, training: Training) -> list[Suggestion]:
    """Of sweeps of 100 steps; none where these were not measured."""
    try:
        return [told_range_test(store, job, 100, seed, training).suggestion for seed in SWEEP_SEEDS]
    except MissingError:
        return []


def _confirmed(store: Store, job: Job, training: Training) -> list[Suggestion]:
    """After 500 steps of trials; none where these were not measured."""
    tables = [TrialTable(store, training.schedule, seed) for seed in TRIAL_SEEDS]
    if any(set(table.lengths) < {25, 50, 100, 200} for table in tables) or not _of_sweeps(store, job, training):
        return []
    return [
        confirmed_suggestion(
            table,
            told_range_test(store, job, 100, seed, training),
            optimizer=CLASSES[job.optimizer],
            budget_steps=500,
            training=training,
            initial_loss=store.start,
        )
        for table in tables
        for seed in SWEEP_SEEDS
    ]


def report_kinds(found: Scores, members: Sequence[Job]) -> None:
    """Print the main rules by class of optimizer and kind of data, on trainings of 400 steps at a constant LR."""
    print(f"| mean regret | jobs | {' | '.join(CHOSEN)} |\n|---|---|{'---|' * len(CHOSEN)}")
    for kind, (count, means) in regrets_by_kind(found.regrets, members, CHOSEN).items():
        cells = ["" if math.isnan(mean) else f"{mean:.3f}" for mean in means]
        print(f"| {kind} | {count} | {' | '.join(cells)} |")
    print()


def report_jobs(measured: Sequence[Measured]) -> None:
    """Print every job."""
    print("| job | set | best LR, 400 steps constant | auto | regret |\n|---|---|---|---|---|")
    for job, store in measured:
        found = bowl(store, 400, "constant")
        if found is None:
            continue
        try:
            lrs = [told_range_test(store, job, 100, seed, REFERENCE).suggestion.lr for seed in SWEEP_SEEDS]
        except MissingError:
            continue
        said = ", ".join("none" if lr is None else f"{lr:.1e}" for lr in lrs)
        lost = ", ".join(f"{value:.3f}" for value in found.regret(lrs))
        kind = "test" if job.is_test else "development"
        print(f"| {job.name} | {kind} | {lr_at(found.best_position):.1e} | {said} | {lost} |")


if __name__ == "__main__":
    main()
