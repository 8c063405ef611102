"""How much of the achievable improvement each rule's learning rate loses: python scripts/benchmarks/regret.py [--fast].

The oracle trains every development job at a grid of LRs (three a decade), under two schedules (constant; 10 % warm-up,
then cosine to zero) and two seeds. With L(lr) the mean validation loss at the end, L* the lowest of the grid and L0 the
loss at the start, regret(lr) = (L(lr) - L*) / (L0 - L*), clipped to [0, 1], interpolated over log lr and averaged over
schedules; a rule without a suggestion has regret 1. Oracle and recorded sweeps are kept in regret_data.json; --fast
only scores the rules on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrrunner.core.schedule import exponential_lr
from lrrunner.core.smoothing import Ema
from lrrunner.core.stopping import stop_rule
from lrrunner.core.suggestion import RULES, suggest
from lrrunner.records import Step, Stop, StopReason

HERE = Path(__file__).resolve().parent
DATA = HERE / "regret_data.json"
SCHEDULES = ("constant", "cosine")
ORACLE_SEEDS = (0, 1)
SWEEP_SEEDS = (0, 1, 2)
NUM_STEPS = 100
SWEEP_LENGTHS = (30, 50, NUM_STEPS, 200, 400)
PEER_LADDERS = {"luz_gugger": (1e-7, 0.1), "lightning": (1e-8, 1.0), "ignite": (1e-3, 10.0)}
"""What these climb by default, all others 1e-7 to 10. Ignite starts at the optimizer's own LR, torch's default here."""
BETA = 0.9

Curve = dict[str, list[float]]


def main() -> None:
    """Measure what is missing, then score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="score on the kept results only")
    parser.add_argument("--data-root", type=Path, help="folder with mnist/ and tinyshakespeare/, for two more jobs")
    parser.add_argument("--leave-one-out", action="store_true", help="fit the constants of `auto` to all jobs but one")
    parser.add_argument("--only", help="measure only the jobs that match this pattern")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    if arguments.leave_one_out:
        report_left_out(kept)
        return
    if not arguments.fast:
        kept = measured(arguments.data_root, kept, arguments.only)
    report(kept)


def measured(data_root: Path | None, kept: dict[str, Any], only: str | None) -> dict[str, Any]:
    """Oracle and sweeps of every job that lacks them, two jobs at a time."""
    sys.path.insert(0, str(HERE))
    from regret_jobs import jobs

    names = [job.name for job in jobs(data_root) if only is None or re.fullmatch(only, job.name)]
    work = [(name, kept.get(name, {})) for name in names]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, result in pool.imap_unordered(partial(measure, data_root), work):
            print(f"measured {name}", file=sys.stderr, flush=True)
            kept[name] = result
            DATA.write_text(json.dumps(kept, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    return kept


def measure(data_root: Path | None, work: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """What one job lacks of its oracle and its sweeps."""
    import torch

    sys.path.insert(0, str(HERE))
    from regret_jobs import jobs

    torch.set_num_threads(1)
    name, kept = work
    job = next(job for job in jobs(data_root) if job.name == name)
    if "losses" not in kept:
        kept |= oracle(job)
    record_sweeps(job, kept.setdefault("sweeps", {}))
    return name, kept


def oracle(job: Any) -> dict[str, Any]:
    """Validation losses of a job under every LR of its grid, (LR, seed) by schedule."""
    low, high = (round(3 * math.log10(lr)) for lr in job.lrs)
    grid = [10 ** (i / 3) for i in range(low, high + 1)]
    start = float(np.mean([trained(job, grid[0], "constant", seed, num_steps=0) for seed in ORACLE_SEEDS]))
    return {
        "num_steps": job.num_steps,
        "lrs": [rounded(lr) for lr in grid],
        "start": rounded(start),
        "losses": {
            schedule: [[trained(job, lr, schedule, seed) for seed in ORACLE_SEEDS] for lr in grid]
            for schedule in SCHEDULES
        },
    }


class Sweep(NamedTuple):
    """One recorded sweep: its ladder and its seed."""

    start_lr: float
    end_lr: float
    num_steps: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.start_lr:g} {self.end_lr:g} {self.num_steps} {self.seed}"

    @property
    def lrs(self) -> Any:
        """Its ladder, shape (num_steps,)."""
        return exponential_lr(start_lr=self.start_lr, end_lr=self.end_lr, num_steps=self.num_steps)


def record_sweeps(job: Any, sweeps: dict[str, Curve]) -> None:
    """Add every ladder that a rule of ours or of a peer wants to see."""
    for seed in SWEEP_SEEDS:
        for num_steps in SWEEP_LENGTHS:
            record_sweep(job, sweeps, Sweep(1e-7, 10.0, num_steps, seed))
            if stopped(sweeps, Sweep(1e-7, 10.0, num_steps, seed))[1].reason == StopReason.END_OF_LADDER:
                record_sweep(job, sweeps, Sweep(1e-7, 1e3, num_steps, seed))
        for start_lr, end_lr in PEER_LADDERS.values():
            record_sweep(job, sweeps, Sweep(start_lr, end_lr, NUM_STEPS, seed))


def record_sweep(job: Any, sweeps: dict[str, Curve], sweep: Sweep) -> None:
    """Add one ladder, climbed without a stop rule, so that every rule's own can be applied to it afterwards."""
    if sweep.key not in sweeps:
        sweeps[sweep.key] = swept(job, sweep)


def trained(job: Any, lr: float, schedule: str, seed: int, num_steps: int | None = None) -> float:
    """Validation loss after a training; infinite when it diverged."""
    import torch

    num_steps = job.num_steps if num_steps is None else num_steps
    torch.manual_seed(seed)
    model = job.model()
    optimizer = job.optimizer(model.parameters(), lr)
    batches = batches_of(job, seed)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule_factor(schedule, step, num_steps)
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = job.loss(model(inputs), targets)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        inputs, targets = job.val()
        return rounded(job.loss(model(inputs), targets).item())


def schedule_factor(schedule: str, step: int, num_steps: int) -> float:
    """LR of a step as a share of the peak LR."""
    if schedule == "constant":
        return 1.0
    warm_up = max(1, num_steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (num_steps - warm_up)))


def batches_of(job: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    """Shuffled batches, cut by the planner of the package."""
    from lrrunner.core.batches import BatchPlan, global_batches

    inputs, targets = job.train()
    plan = BatchPlan(dataset_size=len(inputs), global_batch_size=job.batch_size)
    for batch in global_batches(plan, seed=seed, repeat=0):
        indices = batch.reshape(-1)
        yield inputs[indices], targets[indices]


def swept(job: Any, sweep: Sweep) -> Curve:
    """One sweep to the end of its ladder, or to its first loss that is not finite."""
    import torch

    from lrrunner.collectives import SerialCollective
    from lrrunner.engine import Ladder, Trainable, run_sweep

    class Never:
        def update(self, raw_loss: float, smoothed_loss: float) -> bool:
            return False

    torch.manual_seed(sweep.seed)
    model = job.model()
    result = run_sweep(
        Trainable(
            model=model,
            optimizer=job.optimizer(model.parameters(), 1e-3),
            objective=lambda model, batch: job.loss(model(batch[0]), batch[1]),
            micro_batch_size=job.batch_size,
        ),
        Ladder(lrs=sweep.lrs.tolist(), beta=BETA, new_stop_rule=Never, seed=sweep.seed),
        lambda repeat: batches_of(job, sweep.seed),
        collective=SerialCollective(),
    )
    return {
        "loss": [rounded(step.loss) for step in result.steps],
        "grad_norm": [rounded(step.grad_norm) for step in result.steps],
    }


def rounded(value: float) -> float:
    """Six digits: what a curve is worth, and a third of the file."""
    return float(f"{value:.6g}") if math.isfinite(value) else value


def regret(job: dict[str, Any], lr: float | None) -> float:
    """Share of the achievable improvement that a learning rate loses."""
    if lr is None:
        return 1.0
    by_schedule = []
    for schedule in SCHEDULES:
        losses = np.mean(job["losses"][schedule], axis=1)
        share = np.clip((losses - losses.min()) / (job["start"] - losses.min()), 0, 1)
        share[~np.isfinite(losses)] = 1.0
        by_schedule.append(np.interp(math.log(lr), np.log(job["lrs"]), share))
    return float(np.mean(by_schedule))


def stopped(sweeps: dict[str, Curve], sweep: Sweep) -> tuple[list[Step], Stop]:
    """The records that lrrunner's own stop rule would have left of a full sweep."""
    ema, rule = Ema(BETA), stop_rule("range", factor=2.0, num_steps=sweep.num_steps)
    steps: list[Step] = []
    curve = sweeps[sweep.key]
    for i, (lr, loss, norm) in enumerate(zip(sweep.lrs.tolist(), curve["loss"], curve["grad_norm"], strict=False)):
        if not math.isfinite(loss):
            steps.append(Step(step=i, lr=lr, loss=loss))
            return steps, Stop(reason=StopReason.NON_FINITE, step=i)
        steps.append(Step(step=i, lr=lr, loss=loss, smoothed_loss=ema.update(loss), grad_norm=norm))
        if rule.update(loss, ema.value):
            return steps, Stop(reason=StopReason.DIVERGED, step=i)
    return steps, Stop(reason=StopReason.END_OF_LADDER, step=len(steps) - 1)


def own_sweep(sweeps: dict[str, Curve], num_steps: int, seed: int) -> tuple[list[Step], Stop]:
    """What lrrunner records by default: a ladder that shows no divergence is climbed again with a higher end."""
    steps, stop = stopped(sweeps, Sweep(1e-7, 10.0, num_steps, seed))
    if stop.reason == StopReason.END_OF_LADDER:
        return stopped(sweeps, Sweep(1e-7, 1e3, num_steps, seed))
    return steps, stop


def suggestions(sweeps: dict[str, Curve], seed: int) -> dict[str, float | None]:
    """Every rule's LR on one sweep of 100 steps; a peer's rule comes with its own ladder, smoothing, stop and cut."""
    steps, stop = own_sweep(sweeps, NUM_STEPS, seed)
    found = {name: suggest(steps, [stop], method=name, beta=BETA).lr for name in RULES}
    for peer in PEERS:
        sweep = Sweep(*PEER_LADDERS.get(peer.__name__, (1e-7, 10.0)), NUM_STEPS, seed)
        losses = np.array(sweeps[sweep.key]["loss"])
        found[f"peer: {peer.__name__}"] = peer(sweep.lrs[: len(losses)], losses)
    return found


def report(kept: dict[str, Any]) -> None:
    """Print regret by rule, and by job for `auto`."""
    found = {name: [suggestions(job["sweeps"], seed) for seed in SWEEP_SEEDS] for name, job in kept.items()}
    rules = list(next(iter(found.values()))[0])
    table = {
        rule: np.array([[regret(kept[name], sweep[rule]) for sweep in sweeps] for name, sweeps in found.items()])
        for rule in rules
    }
    print(f"{len(kept)} jobs, {len(SWEEP_SEEDS)} sweeps each, {NUM_STEPS} steps\n")
    print("| rule | mean | median | worst job | spread over sweep seeds | none |")
    print("|---|---|---|---|---|---|")
    for rule, values in sorted(table.items(), key=lambda item: item[1].mean()):
        by_job = values.mean(axis=1)
        none = sum(sweep[rule] is None for sweeps in found.values() for sweep in sweeps)
        spread = values.std(axis=1).mean()
        print(
            f"| {rule} | {values.mean():.4f} | {np.median(by_job):.4f} | {by_job.max():.3f} | {spread:.4f} | {none} |"
        )
    print("\n| job | best LR (constant, cosine) | auto | regret of auto |")
    print("|---|---|---|---|")
    for (name, job), values in zip(kept.items(), table["auto"], strict=True):
        best = [job["lrs"][int(np.argmin(np.mean(job["losses"][s], axis=1)))] for s in SCHEDULES]
        lrs = ", ".join("none" if s["auto"] is None else f"{s['auto']:.1e}" for s in found[name])
        print(f"| {name} | {best[0]:.1e}, {best[1]:.1e} | {lrs} | {', '.join(f'{v:.3f}' for v in values)} |")
    report_intervals(kept)


def report_intervals(kept: dict[str, Any]) -> None:
    """Print how many intervals of `auto` contain an LR that is nearly the best, and how wide they are."""
    hits, widths = [], []
    for job in kept.values():
        lowest = min(regret(job, lr) for lr in np.geomspace(job["lrs"][0], job["lrs"][-1], 100))
        for seed in SWEEP_SEEDS:
            steps, stop = own_sweep(job["sweeps"], NUM_STEPS, seed)
            interval = suggest(steps, [stop], beta=BETA).interval
            if interval is not None:
                hits.append(min(regret(job, lr) for lr in np.geomspace(*interval, 40)) <= 0.015 + lowest)
                widths.append(math.log10(interval[1] / interval[0]))
    print(f"\n{sum(hits)} of {len(hits)} intervals of auto contain an LR within 0.015 of the lowest regret;")
    print(f"median width {np.median(widths):.2f} decades")


def report_left_out(kept: dict[str, Any]) -> None:
    """Print what `auto` loses on each job when its three divisors are fitted to all the others."""
    from lrrunner.core import suggestion
    from lrrunner.core.curve import curve_from_steps

    names = ("BELOW_FALL", "BELOW_BLOW_UP", "BELOW_GRADIENT_RISE")
    curves = {
        name: [
            curve
            for seed in SWEEP_SEEDS
            if (curve := curve_from_steps(own_sweep(job["sweeps"], NUM_STEPS, seed)[0], beta=BETA))
        ]
        for name, job in kept.items()
    }
    table = {}
    for divisors in itertools.product((1.0, 1.4, 2.0, 2.8), (8.0, 11.0, 16.0, 23.0, 32.0), (3.0, 4.2, 6.0, 8.5)):
        for constant, divisor in zip(names, divisors, strict=True):
            setattr(suggestion, constant, divisor)
        table[divisors] = {
            name: float(np.mean([regret(kept[name], suggestion.auto(curve)) for curve in group]))
            for name, group in curves.items()
        }
    chosen = []
    print(f"| job left out | {' | '.join(names)} | regret of auto on it, without verdicts |\n|---|---|---|---|---|")
    for name in kept:
        best = min(table, key=lambda key: sum(loss for job, loss in table[key].items() if job != name))
        chosen.append(table[best][name])
        print(f"| {name} | {' | '.join(map(str, best))} | {table[best][name]:.4f} |")
    best = min(table, key=lambda key: sum(table[key].values()))
    print(f"\nleft-one-out mean {np.mean(chosen):.4f}, median {np.median(chosen):.4f}, worst {max(chosen):.3f}")
    print(f"fitted to all: {dict(zip(names, best, strict=True))}, mean {np.mean(list(table[best].values())):.4f}")


def _ema_seeded(losses: Any, beta: float) -> Any:
    """First value as seed, no bias correction."""
    smoothed = [losses[0]]
    for loss in losses[1:]:
        smoothed.append(beta * smoothed[-1] + (1 - beta) * loss)
    return np.array(smoothed)


def _until(stop: Callable[[int], bool], size: int) -> int:
    """Points up to and with the first that stops."""
    return next((i + 1 for i in range(size) if stop(i)), size)


def _finite_part(lrs: Any, losses: Any) -> tuple[Any, Any]:
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if len(bad) else len(losses)
    return lrs[:end], losses[:end]


def torch_lr_finder(lrs: Any, losses: Any) -> float | None:
    """Steepest by index on a seeded EMA (0.95), stopped at 5 x best, ten points cut at the start, five at the end."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = _ema_seeded(losses, 0.95)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 5 * best[i]), len(smoothed))
    cut = slice(10, end - 5)
    if len(smoothed[cut]) < 2:
        return None
    return float(lrs[cut][int(np.argmin(np.gradient(smoothed[cut])))])


def _fastai_curve(lrs: Any, losses: Any) -> tuple[Any, Any]:
    """Bias-corrected EMA (0.98), stopped at 4 x best, a tenth cut at the start and five points at the end."""
    from lrrunner.core.smoothing import ema

    lrs, losses = _finite_part(lrs, losses)
    smoothed = ema(losses, beta=0.98)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 4 * best[i]), len(smoothed))
    return lrs[NUM_STEPS // 10 : end - 5], smoothed[NUM_STEPS // 10 : end - 5]


def fastai_minimum(lrs: Any, losses: Any) -> float | None:
    """A tenth of the minimum's LR."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    return float(lrs[int(np.argmin(smoothed))]) / 10 if len(lrs) else None


def fastai_steep(lrs: Any, losses: Any) -> float | None:
    """Steepest difference against log LR."""
    lrs, smoothed = _fastai_curve(lrs, losses)
    return float(lrs[int(np.argmin(np.diff(smoothed) / np.diff(np.log(lrs))))]) if len(lrs) > 1 else None


def fastai_valley(lrs: Any, losses: Any) -> float | None:
    """Middle of the longest decreasing subsequence."""
    from lrrunner.core.suggestion import longest_decreasing_subsequence

    lrs, smoothed = _fastai_curve(lrs, losses)
    if len(lrs) < 2:
        return None
    indices = longest_decreasing_subsequence(smoothed)
    start = max(0, indices[-1] - len(indices))
    return float(lrs[start + int((indices[-1] - start) / 3) + int((indices[-1] - start) / 6)])


def luz_gugger(lrs: Any, losses: Any) -> float | None:
    """A tenth of the minimum's LR on a bias-corrected EMA (0.9), without a stop."""
    from lrrunner.core.smoothing import ema

    lrs, losses = _finite_part(lrs, losses)
    return float(lrs[int(np.argmin(ema(losses, beta=0.9)))]) / 10


def lightning(lrs: Any, losses: Any) -> float | None:
    """Steepest against LR itself, on an EMA (0.98) whose bias correction is one step off, stopped at 4 x best."""
    lrs, losses = _finite_part(lrs, losses)
    average, smoothed = 0.0, []
    for i, loss in enumerate(losses):
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98 ** (i + 2)))
    values = np.array(smoothed)
    best = np.minimum.accumulate(values)
    end = _until(lambda i: i > 1 and bool(values[i] > 4 * best[i]), len(values))
    cut = slice(10, end - 1)
    return float(lrs[cut][int(np.argmin(np.gradient(values[cut], lrs[cut])))]) if len(values[cut]) > 1 else None


def tf2_article(lrs: Any, losses: Any) -> float | None:
    """Largest drop of a bias-corrected EMA (0.96), stopped at 4 x best raw loss."""
    from lrrunner.core.smoothing import ema

    lrs, losses = _finite_part(lrs, losses)
    smoothed = ema(losses, beta=0.96)
    best = np.minimum.accumulate(losses)
    end = _until(lambda i: bool(smoothed[i] > 4 * best[i]), len(smoothed))
    return float(lrs[int(np.argmin(np.diff(smoothed[:end]))) + 1]) if end > 1 else None


def ignite(lrs: Any, losses: Any) -> float | None:
    """Steepest by index, left of the minimum, on a seeded EMA (0.05); stopped at 5 x best."""
    lrs, losses = _finite_part(lrs, losses)
    smoothed = _ema_seeded(losses, 0.05)
    best = np.minimum.accumulate(smoothed)
    end = _until(lambda i: bool(smoothed[i] > 5 * best[i]), len(smoothed))
    falling = smoothed[: int(np.argmin(smoothed[:end])) + 1]
    return float(lrs[int(np.argmin(falling[2:] - falling[:-2])) + 1]) if len(falling) > 2 else None


PEERS = (
    torch_lr_finder,
    fastai_minimum,
    fastai_steep,
    fastai_valley,
    luz_gugger,
    lightning,
    ignite,
    tf2_article,
)


if __name__ == "__main__":
    main()
