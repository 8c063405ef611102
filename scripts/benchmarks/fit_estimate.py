"""Fits the constants of core/lr_estimate.py to the development jobs: python scripts/benchmarks/fit_estimate.py.

Prints the constants, and what the estimate loses on each job when they are fitted to all others. Test jobs are read
only with --test, which prints the score of the constants in the package. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from oracle.bowls import Bowl, bowl  # noqa: E402 - the benchmark's own modules lie beside it
from oracle.catalog import Job, jobs  # noqa: E402
from oracle.optimizers import CLASSES  # noqa: E402
from oracle.replay import BETA, MissingError, range_test  # noqa: E402
from oracle.store import Store, lr_at  # noqa: E402

from lrrunner.core import lr_estimate  # noqa: E402
from lrrunner.core.curve import curve_from_steps  # noqa: E402
from lrrunner.core.landmarks import Landmark, landmarks  # noqa: E402
from lrrunner.core.lr_estimate import NAMES, REFERENCE_STEPS_PER_DECADE, OptimizerClass, estimate  # noqa: E402

MEASUREMENTS = HERE / "oracle" / "measurements"
SWEEP_SEEDS = (10, 11, 12)
SWEEP_LENGTHS = (30, 50, 100, 200, 400, 1000)

NEARLY_BEST = 0.02
"""Regret within which an LR counts as good: the target is the mean log LR weighted by exp(-regret / NEARLY_BEST)."""

CLIP_DECADES = 1.2
"""An observation further than this from the mean is taken to be this far: landmarks that are accidents do not count."""

SHRINKAGE = 0.3
"""Covariances lose this share: thirty jobs do not fix ten of them."""

USUAL_LOG_LRS = {
    OptimizerClass.ADAPTIVE: -2.3,
    OptimizerClass.ADAGRAD: -1.2,
    OptimizerClass.MOMENTUM: -1.5,
    OptimizerClass.SGD: -0.75,
    OptimizerClass.SIGN: -3.2,
    OptimizerClass.ORTHOGONAL: -2.0,
}
PSEUDO_JOBS = 2
"""What is usual counts as so many jobs of each class."""


class Observed(NamedTuple):
    """A job, its bowl at 400 steps and a constant LR, its best log LR, and the landmarks of its sweeps by length."""

    job: Job
    bowl: Bowl
    best: float
    sweeps: dict[int, list[dict[str, Landmark]]]


def observed(folder: Path, *, is_test: bool) -> list[Observed]:
    """All development jobs, or all test jobs, with the landmarks of their sweeps."""
    found = []
    for job in jobs():
        store = Store(folder / f"{job.name}.jsonl")
        if job.is_test != is_test or not store.initial or (oracle := bowl(store, 400, "constant")) is None:
            continue
        sweeps: dict[int, list[dict[str, Landmark]]] = {}
        for num_steps in SWEEP_LENGTHS:
            for seed in SWEEP_SEEDS:
                try:
                    curve = curve_from_steps(range_test(store, num_steps, seed).steps, beta=BETA)
                except MissingError:
                    continue
                sweeps.setdefault(num_steps, []).append({} if curve is None else landmarks(curve))
        found.append(Observed(job, oracle, best_log_lr(oracle), sweeps))
    return found


def best_log_lr(oracle: Bowl) -> float:
    """Mean log LR of a bowl, weighted by how nearly best each LR is."""
    lrs = [lr_at(position) for position in oracle.positions]
    weights = np.exp(-oracle.regret(lrs) / NEARLY_BEST)
    return float(np.average(np.log10(lrs), weights=weights))


def fit(group: Sequence[Observed]) -> dict[str, Any]:
    """The constants of core/lr_estimate.py from some jobs, which weigh alike at each length of the sweep."""
    rows = [
        (number, _slower(found), 1 / len(sweeps), [_distance(found, name, each.best) for name in NAMES])
        for number, each in enumerate(group)
        for sweeps in each.sweeps.values()
        for found in sweeps
    ]
    number, slower, weight, distance = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    offsets, exponents = zip(*(_line(number, slower, weight, column) for column in distance.T), strict=True)
    rest = np.clip(distance - np.outer(slower, exponents) - offsets, -CLIP_DECADES, CLIP_DECADES)
    covariance = np.array([[_mean_product(weight, a, b) for b in rest.T] for a in rest.T])
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    return {
        "OFFSETS": tuple(np.round(offsets, 2).tolist()),
        "STEPS_EXPONENTS": tuple(np.round(exponents, 2).tolist()),
        "COVARIANCE": tuple(tuple(row) for row in np.round(covariance, 2).tolist()),
        "PRIOR_LOG_LRS": {kind: _prior(group, kind) for kind in OptimizerClass},
    }


def _distance(found: dict[str, Landmark], name: str, best: float) -> float:
    return found[name].log_lr - best if name in found else math.nan


def _slower(found: dict[str, Landmark]) -> float:
    """log10 of the steps per decade over the reference; a sweep has the same everywhere."""
    per_decade = [landmark.steps_per_decade for landmark in found.values()] or [REFERENCE_STEPS_PER_DECADE]
    return math.log10(per_decade[0] / REFERENCE_STEPS_PER_DECADE)


def _line(number: Any, slower: Any, weight: Any, distance: Any) -> tuple[float, float]:
    """Offset and exponent of one landmark: the slope within jobs, then the mean of what is left."""
    seen = ~np.isnan(distance)
    number, slower, weight, distance = (values[seen] for values in (number, slower, weight, distance))
    within_x, within_y = slower.copy(), distance.copy()
    for each in set(number):
        own = number == each
        within_x[own] -= slower[own].mean()
        within_y[own] -= np.median(distance[own])
    within_y = np.clip(within_y, -CLIP_DECADES, CLIP_DECADES)
    exponent = float((weight * within_x * within_y).sum() / (weight * within_x**2).sum())
    rest = distance - exponent * slower
    middle = np.median(rest)
    return float(np.average(np.clip(rest, middle - CLIP_DECADES, middle + CLIP_DECADES), weights=weight)), exponent


def _mean_product(weight: Any, first: Any, second: Any) -> float:
    both = ~np.isnan(first) & ~np.isnan(second)
    return float(np.average(first[both] * second[both], weights=weight[both]))


def _prior(group: Sequence[Observed], kind: OptimizerClass) -> float:
    best = [each.best for each in group if CLASSES[each.job.optimizer] == kind]
    return round((sum(best) + PSEUDO_JOBS * USUAL_LOG_LRS[kind]) / (len(best) + PSEUDO_JOBS), 2)


def apply(constants: dict[str, Any]) -> None:
    """Make the package use these constants."""
    for name, value in constants.items():
        setattr(lr_estimate, name, value)


def score(each: Observed, num_steps: int, *, with_prior: bool = True) -> tuple[float, float, float, float]:
    """Mean regret of a job's sweeps, distance from the best log LR, its spread over seeds, mean error it claims."""
    kind = CLASSES[each.job.optimizer] if with_prior else None
    found = [estimate(sweep, optimizer=kind) for sweep in each.sweeps[num_steps]]
    lrs = [None if one is None else 10**one.log_lr for one in found]
    logs = [one.log_lr - each.best for one in found if one is not None] or [math.nan]
    errors = [one.error for one in found if one is not None] or [math.nan]
    return float(each.bowl.regret(lrs).mean()), float(np.mean(logs)), float(np.std(logs)), float(np.mean(errors))


def report(title: str, scores: dict[int, list[tuple[float, float, float, float]]]) -> None:
    """Print one table by length of the sweep."""
    print(f"\n{title}\n")
    print("| steps of the sweep | jobs | mean regret | median | worst | spread over seeds | within 1.64 errors |")
    print("|---|---|---|---|---|---|---|")
    for num_steps, values in scores.items():
        regret, distance, spread, error = np.array(values).T
        row = f"{num_steps} | {len(regret)} | {regret.mean():.4f} | {np.median(regret):.4f} | {regret.max():.3f}"
        print(f"| {row} | {np.nanmean(spread):.2f} | {np.mean(np.abs(distance) <= 1.645 * error):.0%} |")


def main() -> None:
    """Print constants and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS)
    parser.add_argument("--test", action="store_true", help="score the package's constants on the test jobs")
    arguments = parser.parse_args()
    if arguments.test:
        group = observed(arguments.measurements, is_test=True)
        lengths = [n for n in SWEEP_LENGTHS if all(n in each.sweeps for each in group)]
        report("Test jobs", {n: [score(each, n) for each in group] for n in lengths})
        return
    group = observed(arguments.measurements, is_test=False)
    lengths = [n for n in SWEEP_LENGTHS if all(n in each.sweeps for each in group)]
    for with_prior in (True, False):
        scores: dict[int, list[tuple[float, float, float, float]]] = {n: [] for n in lengths}
        for each in group:
            apply(fit([other for other in group if other is not each]))
            for num_steps in lengths:
                scores[num_steps].append(score(each, num_steps, with_prior=with_prior))
        report(f"Left-one-out, {'with' if with_prior else 'without'} the optimizer's class", scores)
        if with_prior:
            print("\n| job | regret at 100 steps | decades from the best |\n|---|---|---|")
            for each, (lost, distance, *_) in zip(group, scores[100], strict=True):
                print(f"| {each.job.name} | {lost:.3f} | {distance:+.2f} |")
    print("\nFitted to all:")
    for name, value in fit(group).items():
        print(f"{name} = {value}")


if __name__ == "__main__":
    main()
