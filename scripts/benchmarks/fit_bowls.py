"""Fits what the best LR depends on beside the sweep: python scripts/benchmarks/fit_bowls.py.

From the bowls of the development jobs alone: how the best LR moves with the length and the schedule of the training
(constants of core/lr_estimate.py), and how fast the loss grows beside it (core/regret.py). Nothing is trained here.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from fit_estimate import MEASUREMENTS, best_log_lr  # noqa: E402 - the benchmark's own modules lie beside it
from oracle.bowls import Bowl, bowl  # noqa: E402
from oracle.catalog import jobs  # noqa: E402
from oracle.store import Store  # noqa: E402

from lrrunner.core.regret import CURVATURE_WEIGHTS, DEVIATIONS  # noqa: E402

ORACLE_SEEDS = (0, 1, 2, 3)
LENGTHS = (200, 400, 1000, 5000)
SCHEDULES = ("constant", "linear", "cosine")
DISTANCES = np.array([-1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1])
"""Decades from the best LR at which bowls are compared."""


def development_bowls(folder: Path) -> dict[tuple[str, int], dict[str, Bowl]]:
    """(Schedule, length) -> job -> its bowl."""
    found: dict[tuple[str, int], dict[str, Bowl]] = {}
    for job in jobs():
        store = Store(folder / f"{job.name}.jsonl")
        if job.is_test or not store.initial:
            continue
        for schedule, num_steps in itertools.product(SCHEDULES, LENGTHS):
            if (measured := bowl(store, num_steps, schedule, ORACLE_SEEDS)) is not None:
                found.setdefault((schedule, num_steps), {})[job.name] = measured
    return found


def moves(found: dict[tuple[str, int], dict[str, Bowl]], before: tuple[str, int], after: tuple[str, int]) -> Any:
    """Decades from the best LR of one training to that of another, of each job that has both."""
    common = found.get(before, {}).keys() & found.get(after, {}).keys()
    return np.array([best_log_lr(found[after][name]) - best_log_lr(found[before][name]) for name in sorted(common)])


def report_lengths(found: dict[tuple[str, int], dict[str, Bowl]]) -> None:
    """Print what the best LR moves for ten times the steps."""
    print("| schedule | from | to | jobs | decades for ten times the steps | standard deviation |")
    print("|---|---|---|---|---|---|")
    for schedule, (short, long) in itertools.product(("constant", "cosine"), itertools.combinations(LENGTHS, 2)):
        if len(decades := moves(found, (schedule, short), (schedule, long)) / np.log10(long / short)):
            row = f"{schedule} | {short} | {long} | {len(decades)} | {decades.mean():+.2f} | {decades.std():.2f}"
            print(f"| {row} |")


def report_schedules(found: dict[tuple[str, int], dict[str, Bowl]]) -> None:
    """Print what the best peak LR of a decay lies above the best constant LR."""
    print("\n| schedule | steps | jobs | decades above constant | standard deviation |\n|---|---|---|---|---|")
    for schedule, num_steps in itertools.product(("linear", "cosine"), LENGTHS):
        if len(decades := moves(found, ("constant", num_steps), (schedule, num_steps))):
            print(f"| {schedule} | {num_steps} | {len(decades)} | {decades.mean():+.2f} | {decades.std():.2f} |")


def shares_beside_the_best(bowls: Sequence[Bowl]) -> Any:
    """Regret at ``DISTANCES`` of each bowl, shape (bowls, distances); NaN beyond what was measured."""
    rows = []
    for each in bowls:
        losses = np.minimum(each.middle, each.start)
        share = (losses - losses.min()) / (each.start - losses.min())
        places = (each.positions - each.best_position) / 4
        rows.append(np.interp(DISTANCES, places, share, left=np.nan, right=np.nan))
    return np.array(rows)


def fit_shape(shares: Any) -> dict[str, float]:
    """The constants of core/regret.py whose mean and median job are nearest to those measured."""
    mean, median = np.nanmean(shares, axis=0), np.nanmedian(shares, axis=0)
    grid = itertools.product(np.arange(0.1, 0.6, 0.05), np.arange(0.3, 1.2, 0.1), np.arange(1.0, 3.1, 0.2))

    def misfit(constants: tuple[float, float, float]) -> float:
        curvature, spread, steeper = constants
        squares = np.where(DISTANCES > 0, steeper, 1.0) * DISTANCES**2
        lost = squares[:, None] * curvature * 10 ** (spread * DEVIATIONS)
        near = np.where(np.abs(DISTANCES) <= 0.5, 1.0, 0.2)  # where suggestions are
        of_mean, of_median = (lost / (1 + lost)) @ CURVATURE_WEIGHTS, squares * curvature / (1 + squares * curvature)
        return float(near @ ((of_mean - mean) / mean) ** 2 + 0.1 * near @ ((of_median - median) / mean) ** 2)

    curvature, spread, steeper = min(grid, key=misfit)
    return {"MEDIAN_CURVATURE": curvature, "CURVATURE_SPREAD": spread, "STEEPER_ABOVE": steeper}


def main() -> None:
    """Print the tables and the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS)
    found = development_bowls(parser.parse_args().measurements)
    report_lengths(found)
    report_schedules(found)
    shares = shares_beside_the_best(list(found["constant", 400].values()))
    print("\n| decades from the best LR | mean regret | median |\n|---|---|---|")
    for distance, mean, median in zip(DISTANCES, np.nanmean(shares, axis=0), np.nanmedian(shares, axis=0), strict=True):
        print(f"| {distance:+.2f} | {mean:.3f} | {median:.3f} |")
    for name, value in fit_shape(shares).items():
        print(f"{name} = {value:.2f}")


if __name__ == "__main__":
    main()
