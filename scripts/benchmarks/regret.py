"""How much of the achievable improvement each rule's learning rate loses: python scripts/benchmarks/regret.py [--fast].

The oracle trains every development job at a grid of LRs (three a decade), under two schedules (constant; 10 % warm-up,
then cosine to zero) and two seeds. With L(lr) the mean validation loss at the end, L* the lowest of the grid and L0 the
loss at the start, regret(lr) = (L(lr) - L*) / (L0 - L*), clipped to [0, 1], interpolated over log lr and averaged over
schedules; a rule without a suggestion has regret 1. Everything measured is kept in regret_data.json; --fast only scores
it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrrunner.core.suggestion_rules import RULES

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from peer_packages import preferred, sources  # noqa: E402
from regret_measure import (  # noqa: E402 - the benchmark's own modules lie beside it
    BUDGETS,
    END_LR,
    NUM_STEPS,
    OTHER_SEEDS,
    SCHEDULES,
    START_LR,
    SWEEP_LENGTHS,
    SWEEP_SEEDS,
    Kept,
    Known,
    MissingError,
    Sweep,
    confirmed_suggestion,
    measure,
    range_test,
    training_of,
)
from regret_peers import PEER_RANGES, PEERS  # noqa: E402

DATA = HERE / "regret_data.json"
NEARLY_BEST = 0.015
REMEASURE = "run it without --fast to measure what is missing"
TOLD = "auto, told its training"
"""With one LR a schedule; the other rules have one for both."""

Lrs = dict[str, float | None]


def main() -> None:
    """Measure what is missing, then score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="score on the kept results only")
    parser.add_argument("--data-root", type=Path, help="folder with mnist/ and tinyshakespeare/, for two more jobs")
    parser.add_argument("--only", help="measure only the jobs that match this pattern")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the jobs into this folder")
    arguments = parser.parse_args()
    kept: dict[str, Kept] = json.loads(DATA.read_text()) if DATA.exists() else {}
    if not arguments.fast:
        kept = measured(arguments.data_root, kept, arguments.only)
    jobs = {name: Known(name, job) for name, job in kept.items()}
    swept = {name: known for name, known in jobs.items() if _is_swept(known)}
    if left := [name for name in jobs if name not in swept]:
        print(f"without {', '.join(left)}: the rules extend their sweeps as was not measured; {REMEASURE}\n")
    if not swept:
        sys.exit(f"no job has been measured; {REMEASURE}")
    report(swept)
    if arguments.plots:
        from regret_plots import draw_jobs

        draw_jobs({name: (known.kept, suggestions(known, 0)) for name, known in swept.items()}, arguments.plots)


def _is_swept(known: Known) -> bool:
    """Whether every sweep that the rules ask for was measured."""
    try:
        for seed in SWEEP_SEEDS:
            suggestions(known, seed)
        for num_steps in SWEEP_LENGTHS:
            for seed in OTHER_SEEDS:
                range_test(known, num_steps, seed)
    except MissingError:
        return False
    return True


def measured(data_root: Path | None, kept: dict[str, Kept], only: str | None) -> dict[str, Kept]:
    """Oracle, sweeps and trials of every job that lacks some, two jobs at a time."""
    from regret_jobs import jobs

    names = [job.name for job in jobs(data_root) if only is None or re.fullmatch(only, job.name)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        work = [(name, kept.get(name, {})) for name in names]
        for name, result in pool.imap_unordered(partial(measure, data_root), work):
            print(f"measured {name}", file=sys.stderr, flush=True)
            kept[name] = result
            DATA.write_text(json.dumps(kept, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    return kept


def regret(job: Kept, lr: float | None, schedules: Iterable[str] = SCHEDULES) -> float:
    """Share of the achievable improvement that a learning rate loses."""
    return 1.0 if lr is None else float(np.mean([np.interp(math.log(lr), *_bowl(job, name)) for name in schedules]))


def _bowl(job: Kept, schedule: str, seeds: Sequence[int] = (0, 1)) -> tuple[Any, Any]:
    """Log LRs of the oracle's grid and the regret of each."""
    losses = np.array(job["losses"][schedule], dtype=float)[:, list(seeds)].mean(axis=1)
    lowest = losses.min()
    share = np.where(np.isfinite(losses), np.clip((losses - lowest) / (job["start"] - lowest), 0, 1), 1.0)
    return np.log(job["lrs"]), share


def suggestions(known: Known, seed: int) -> Lrs:
    """Every rule's LR on one sweep of 100 steps; a peer's rule comes with its own LR range, smoothing, stop and cut."""
    found: Lrs = {name: range_test(known, NUM_STEPS, seed, name).suggestion.lr for name in RULES}
    for peer in PEERS:
        lrs, losses, _ = known.sweep(Sweep(*PEER_RANGES.get(peer.__name__, (START_LR, END_LR)), NUM_STEPS, seed))
        found[f"peer: {peer.__name__}"] = preferred(peer)(lrs, losses)
    return found


def told_regret(known: Known, seed: int) -> float:
    """Regret of auto where it knows the length, schedule and warm-up of the training."""
    values = []
    for schedule in SCHEDULES:
        training = training_of(known.kept["num_steps"], schedule)
        lr = range_test(known, NUM_STEPS, seed, training=training).suggestion.lr
        values.append(regret(known.kept, lr, [schedule]))
    return float(np.mean(values))


def report(jobs: dict[str, Known]) -> None:
    """Print everything."""
    found = {name: [suggestions(known, seed) for seed in SWEEP_SEEDS] for name, known in jobs.items()}
    rules = list(next(iter(found.values()))[0])
    table = {
        rule: np.array([[regret(jobs[name].kept, sweep[rule]) for sweep in sweeps] for name, sweeps in found.items()])
        for rule in rules
    }
    table[TOLD] = np.array([[told_regret(known, seed) for seed in SWEEP_SEEDS] for known in jobs.values()])
    print(f"{len(jobs)} jobs, {len(SWEEP_SEEDS)} sweeps each, {NUM_STEPS} steps; {sources(PEERS)}\n")
    print("| rule | mean | median | worst job | spread over sweep seeds | none |")
    print("|---|---|---|---|---|---|")
    for rule, values in sorted(table.items(), key=lambda item: item[1].mean()):
        by_job = values.mean(axis=1)
        none = sum(sweep["auto" if rule == TOLD else rule] is None for sweeps in found.values() for sweep in sweeps)
        spread = values.std(axis=1).mean()
        print(
            f"| {rule} | {values.mean():.4f} | {np.median(by_job):.4f} | {by_job.max():.3f} | {spread:.4f} | {none} |"
        )
    report_floors(jobs)
    print("\n| job | steps | best LR (constant, cosine) | auto | regret of auto |")
    print("|---|---|---|---|---|")
    for (name, known), values in zip(jobs.items(), table["auto"], strict=True):
        job = known.kept
        best = [job["lrs"][int(_bowl(job, schedule)[1].argmin())] for schedule in SCHEDULES]
        lrs = ", ".join("none" if s["auto"] is None else f"{s['auto']:.1e}" for s in found[name])
        row = f"{name} | {job['num_steps']} | {best[0]:.1e}, {best[1]:.1e} | {lrs}"
        print(f"| {row} | {', '.join(f'{v:.3f}' for v in values)} |")
    report_intervals(jobs)
    peer = min((rule for rule in rules if rule.startswith("peer")), key=lambda rule: table[rule].mean())
    report_confirmation(jobs, peer, table)
    report_lengths(jobs)


def report_floors(jobs: dict[str, Known]) -> None:
    """Print what no rule can get below: one LR for both schedules, and the best LR of one seed on the other seed."""
    both, fresh = [], []
    for known in jobs.values():
        both.append(min(regret(known.kept, lr) for lr in np.geomspace(*_ends(known.kept), 200)))
        for schedule in SCHEDULES:
            for seed in (0, 1):
                here, there = (_bowl(known.kept, schedule, [s])[1] for s in (seed, 1 - seed))
                fresh.append(there[here.argmin()])
    print(f"\nfloor: one LR for both schedules loses {np.mean(both):.4f} on average, {max(both):.3f} at worst;")
    print(
        f"the best LR of one seed loses {np.mean(fresh):.4f} with another, {max(fresh):.3f} at worst, on one schedule"
    )


def _ends(job: Kept) -> tuple[float, float]:
    return job["lrs"][0], job["lrs"][-1]


def report_intervals(jobs: dict[str, Known]) -> None:
    """Print how many intervals contain an LR that is nearly the best, and how wide they are."""
    of_sweep, of_confirmation = [], []
    for known in jobs.values():
        for seed in SWEEP_SEEDS:
            test = range_test(known, NUM_STEPS, seed)
            of_sweep.append(_interval_score(known.kept, test.suggestion.interval, SCHEDULES))
            for name in SCHEDULES if seed in OTHER_SEEDS else ():
                with contextlib.suppress(MissingError):
                    interval = confirmed_suggestion(known, test, name, 5 * NUM_STEPS, seed).interval
                    of_confirmation.append(_interval_score(known.kept, interval, [name]))
    print()
    for title, scores in (("auto", of_sweep), ("confirmation, 5x", of_confirmation)):
        measured_scores = [score for score in scores if score is not None]
        if measured_scores:
            hits, widths = zip(*measured_scores, strict=True)
            print(f"{sum(hits)} of {len(hits)} intervals of {title} contain an LR within {NEARLY_BEST} of the lowest")
            print(f"regret; median width {np.median(widths):.2f} decades")


def _interval_score(
    job: Kept, interval: tuple[float, float] | None, schedules: Iterable[str]
) -> tuple[bool, float] | None:
    if interval is None:
        return None
    schedules = list(schedules)
    lowest = min(regret(job, lr, schedules) for lr in np.geomspace(*_ends(job), 100))
    inside = min(regret(job, lr, schedules) for lr in np.geomspace(*interval, 40))
    return inside <= NEARLY_BEST + lowest, math.log10(interval[1] / interval[0])


def confirmed_regrets(jobs: dict[str, Known], num_steps: int, times: int) -> Any:
    """Regret of each job, NaN where its trials were not measured; 0 times is the sweep alone."""
    return np.array([_confirmed_regret(known, num_steps, times) for known in jobs.values()])


def _confirmed_regret(known: Known, num_steps: int, times: int) -> float:
    """Mean over schedules and seeds, each confirmed on its own."""
    values = []
    for seed in OTHER_SEEDS:
        test = range_test(known, num_steps, seed)
        for name in SCHEDULES:
            try:
                found = confirmed_suggestion(known, test, name, times * num_steps, seed) if times else test.suggestion
            except MissingError:
                return math.nan
            values.append(regret(known.kept, found.lr, [name]))
    return float(np.mean(values))


def report_confirmation(jobs: dict[str, Known], peer: str, table: dict[str, Any]) -> None:
    """Print what confirmation runs gain over the sweep alone and over the best peer, paired by job."""
    budgets = (0, *sorted(times for steps, times in BUDGETS if steps == NUM_STEPS))
    by_budget = {times: confirmed_regrets(jobs, NUM_STEPS, times) for times in budgets}
    of_peer = table[peer][:, list(OTHER_SEEDS)].mean(axis=1)
    print(f"\n| budget | jobs | mean | median | worst job | less than the sweep alone | less than {peer} |")
    print("|---|---|---|---|---|---|---|")
    for times, values in by_budget.items():
        known = ~np.isnan(values)
        cells = [""] * 5
        if known.any():
            gains = [_gain((by_budget[0] - values)[known]) if times else "", _gain((of_peer - values)[known])]
            kept = values[known]
            cells = [f"{kept.mean():.4f}", f"{np.median(kept):.4f}", f"{kept.max():.3f}", *gains]
        print(f"| {times}x | {known.sum()} | {' | '.join(cells)} |")
    if any(np.isnan(values).any() for values in by_budget.values()):
        print(f"\nConfirmation plans trials that were not measured on all jobs; {REMEASURE}.")
    complete = [values for values in by_budget.values() if not np.isnan(values).any()]
    print("\nregret by job: " + ", ".join(
        f"{name} {' / '.join(f'{values[i]:.3f}' for values in complete)}" for i, name in enumerate(jobs)
    ))  # fmt: skip


def _gain(differences: Any) -> str:
    """Mean paired difference with its 95 % bootstrap interval over jobs."""
    drawn = np.random.default_rng(0).choice(differences, size=(4000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{differences.mean():.4f} [{low:.4f}, {high:.4f}]"


def report_lengths(jobs: dict[str, Known]) -> None:
    """Print mean regret by length of the sweep, where every job's is known."""
    print(f"\n| steps of the sweep | {' | '.join(map(str, SWEEP_LENGTHS))} |\n|---|{'---|' * len(SWEEP_LENGTHS)}")
    for times, title in ((0, "sweep alone"), (5, "confirmed with 5x its steps")):
        means = [confirmed_regrets(jobs, num_steps, times).mean() for num_steps in SWEEP_LENGTHS]
        print(f"| {title} | {' | '.join('' if math.isnan(mean) else f'{mean:.4f}' for mean in means)} |")


if __name__ == "__main__":
    main()
