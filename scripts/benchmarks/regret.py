"""How much of the achievable improvement each rule's learning rate loses: python scripts/benchmarks/regret.py [--fast].

The oracle trains every development job at a grid of LRs (three a decade), under two schedules (constant; 10 % warm-up,
then cosine to zero) and two seeds. With L(lr) the mean validation loss at the end, L* the lowest of the grid and L0 the
loss at the start, regret(lr) = (L(lr) - L*) / (L0 - L*), clipped to [0, 1], interpolated over log lr and averaged over
schedules; a rule without a suggestion has regret 1. Oracle and recorded sweeps are kept in regret_data.json; --fast
only scores the rules on them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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
BETA = 0.9

Curve = dict[str, list[float]]


def main() -> None:
    """Measure what is missing, then score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="score on the kept results only")
    parser.add_argument("--data-root", type=Path, help="folder with mnist/ and tinyshakespeare/, for two more jobs")
    parser.add_argument("--grid", action="store_true", help="score `auto` with other constants, without verdicts")
    parser.add_argument("--only", help="measure this job anew")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    if arguments.grid:
        report_grid(kept)
        return
    if not arguments.fast:
        kept |= measured(arguments.data_root, set(kept) - {arguments.only})
        DATA.write_text(json.dumps(kept, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    report(kept)


def measured(data_root: Path | None, done: set[str]) -> dict[str, Any]:
    """Oracle and sweeps of every job that is not done, two jobs at a time."""
    sys.path.insert(0, str(HERE))
    from regret_jobs import jobs

    names = [job.name for job in jobs(data_root) if job.name not in done]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = {}
        for name, result in pool.imap_unordered(partial(measure, data_root), names):
            print(f"measured {name}", file=sys.stderr, flush=True)
            results[name] = result
    return results


def measure(data_root: Path | None, name: str) -> tuple[str, dict[str, Any]]:
    """One job's oracle and sweeps."""
    import torch

    sys.path.insert(0, str(HERE))
    from regret_jobs import jobs

    torch.set_num_threads(1)
    job = next(job for job in jobs(data_root) if job.name == name)
    low, high = (round(3 * math.log10(lr)) for lr in job.lrs)
    grid = [10 ** (i / 3) for i in range(low, high + 1)]
    losses = {
        schedule: [[trained(job, lr, schedule, seed) for seed in ORACLE_SEEDS] for lr in grid] for schedule in SCHEDULES
    }
    start = float(np.mean([trained(job, grid[0], "constant", seed, num_steps=0) for seed in ORACLE_SEEDS]))
    return name, {
        "lrs": [rounded(lr) for lr in grid],
        "start": rounded(start),
        "losses": losses,
        "sweeps": [swept(job, seed) for seed in SWEEP_SEEDS],
    }


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


def swept(job: Any, seed: int) -> Curve:
    """One sweep without a stop rule, so that every rule's own can be applied to it afterwards."""
    import torch

    from lrrunner.collectives import SerialCollective
    from lrrunner.engine import Ladder, Trainable, run_sweep

    class Never:
        def update(self, raw_loss: float, smoothed_loss: float) -> bool:
            return False

    torch.manual_seed(seed)
    model = job.model()
    result = run_sweep(
        Trainable(
            model=model,
            optimizer=job.optimizer(model.parameters(), 1e-3),
            objective=lambda model, batch: job.loss(model(batch[0]), batch[1]),
            micro_batch_size=job.batch_size,
        ),
        Ladder(
            lrs=exponential_lr(start_lr=1e-7, end_lr=10.0, num_steps=NUM_STEPS).tolist(),
            beta=BETA,
            new_stop_rule=Never,
            seed=seed,
        ),
        lambda repeat: batches_of(job, seed),
        collective=SerialCollective(),
    )
    return {
        "lr": [rounded(step.lr) for step in result.steps],
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


def stopped(curve: Curve) -> tuple[list[Step], Stop]:
    """The records that lrrunner's own stop rule would have left of a full sweep."""
    ema, rule = Ema(BETA), stop_rule("range", factor=2.0, num_steps=NUM_STEPS)
    steps: list[Step] = []
    for i, (lr, loss) in enumerate(zip(curve["lr"], curve["loss"], strict=True)):
        if not math.isfinite(loss):
            steps.append(Step(step=i, lr=lr, loss=loss))
            return steps, Stop(reason=StopReason.NON_FINITE, step=i)
        steps.append(Step(step=i, lr=lr, loss=loss, smoothed_loss=ema.update(loss)))
        if rule.update(loss, ema.value):
            return steps, Stop(reason=StopReason.DIVERGED, step=i)
    return steps, Stop(reason=StopReason.END_OF_LADDER, step=len(steps) - 1)


def suggestions(curve: Curve) -> dict[str, float | None]:
    """Every rule's LR on one sweep; a peer's rule comes with its own smoothing, stop and trimming."""
    steps, stop = stopped(curve)
    ours = {name: suggest(steps, [stop], method=name, beta=BETA).lr for name in RULES}
    return ours | {name: find(np.array(curve["lr"]), np.array(curve["loss"])) for name, find in PEERS.items()}


def report(kept: dict[str, Any]) -> None:
    """Print regret by rule, and by job for `auto`."""
    found = {name: [suggestions(curve) for curve in job["sweeps"]] for name, job in kept.items()}
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
        for curve in job["sweeps"]:
            steps, stop = stopped(curve)
            interval = suggest(steps, [stop], beta=BETA).interval
            if interval is not None:
                hits.append(min(regret(job, lr) for lr in np.geomspace(*interval, 40)) <= 0.015 + lowest)
                widths.append(math.log10(interval[1] / interval[0]))
    print(f"\n{sum(hits)} of {len(hits)} intervals of auto contain an LR within 0.015 of the lowest regret;")
    print(f"median width {np.median(widths):.2f} decades")


def report_grid(kept: dict[str, Any]) -> None:
    """Print the mean regret of `auto` for other shares of the fall and other divisors of the blow-up."""
    from lrrunner.core import suggestion
    from lrrunner.core.curve import curve_from_steps

    curves = {name: [curve_from_steps(stopped(c)[0], beta=BETA) for c in job["sweeps"]] for name, job in kept.items()}
    print("| share of the fall | blow-up / 7 | / 10 | / 14 | / 20 | / 28 | / 40 |\n|---|---|---|---|---|---|---|")
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        suggestion.FALL_SHARE = share
        row = []
        for safety in (7, 10, 14, 20, 28, 40):
            suggestion.SAFETY = safety
            values = [regret(kept[name], suggestion.auto(c)) for name, group in curves.items() for c in group if c]
            row.append(f"{np.mean(values):.4f}")
        print(f"| {share} | {' | '.join(row)} |")


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


PEERS: dict[str, Callable[[Any, Any], float | None]] = {
    f"peer: {find.__name__}": find
    for find in (torch_lr_finder, fastai_minimum, fastai_steep, fastai_valley, luz_gugger, lightning, tf2_article)
}


if __name__ == "__main__":
    main()
