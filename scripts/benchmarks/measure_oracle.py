"""Measures the regret benchmark's jobs: python scripts/benchmarks/measure_oracle.py --data DIR.

Stage by stage, over all jobs in each: what is known is not measured again, and a killed measurement loses one training.
Several processes may run at once: a job that another one holds is left to it. ``oracle/README.md`` describes the jobs,
the data folder and the files.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import gc
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402 - the benchmark's own modules lie beside it
from oracle import splits  # noqa: E402
from oracle.catalog import Job, jobs  # noqa: E402
from oracle.lr_free import LR_FREE  # noqa: E402
from oracle.optimizers import USUAL_LR  # noqa: E402
from oracle.plan import LENGTHS, SCHEDULES, Bowl, next_training, robust_losses  # noqa: E402
from oracle.replay import MissingError, range_test  # noqa: E402
from oracle.store import Ladder, Store, lr_at, position_of, rounded  # noqa: E402
from oracle.trainings import Laboratory  # noqa: E402
from regret_peers import PEER_RANGES  # noqa: E402

MEASUREMENTS = HERE / "oracle" / "measurements"

ORACLE_SEEDS = (0, 1, 2, 3)
TRIAL_SEEDS = (4, 5)
SWEEP_SEEDS = (10, 11, 12)
NUM_STEPS = 400
SWEEP_LENGTHS = (30, 50, 200, 400, 1000)

FULL = {0: 4, 1: 4, -1: 4, 2: 4, -2: 4, 3: 2, -3: 2, 4: 2, -4: 2}
HALF = {0: 4, 1: 4, -1: 4, 2: 2, -2: 2, 4: 1, -4: 1}
THIN = {0: 2, 1: 2, -1: 2, 2: 1, -2: 1, 4: 1, -4: 1}
TRIALS = {0: 2, 1: 2, -1: 2, 2: 2, -2: 2, 3: 2, -3: 2, 4: 2, -4: 2, 6: 1, -6: 1}
"""Offsets from the best position, in quarter decades, and how many seeds each gets."""

Stage = Callable[[Job, Store, Callable[[], Laboratory]], None]


def measure_constant(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Initial losses, gradient noise, and trainings of 400 steps at a constant LR; shorter ones on the way."""
    for seed in ORACLE_SEEDS:
        if seed not in store.initial:
            lab = laboratory()
            store.add("initial", seed, rounded(lab.val_loss(lab.model(seed))))
            store.add("noise", seed, *(rounded(value, 4) for value in lab.gradient_noise(seed)))
    _fill(job, store, laboratory, Bowl(NUM_STEPS, "constant", HALF, ORACLE_SEEDS))


def measure_decaying(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Trainings of 400 steps under cosine and linear decay, as few as will do."""
    _fill(job, store, laboratory, Bowl(NUM_STEPS, "cosine", HALF, ORACLE_SEEDS[:3]))
    _fill(job, store, laboratory, Bowl(NUM_STEPS, "linear", THIN, ORACLE_SEEDS))


def measure_trials(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Trainings of 25 to 200 steps at a constant LR, on seeds that the oracle does not have."""
    for num_steps in (200, 100, 50, 25):
        _fill(job, store, laboratory, Bowl(num_steps, "constant", TRIALS, TRIAL_SEEDS))


def measure_decaying_trials(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """The same under cosine and linear decay."""
    for schedule in ("cosine", "linear"):
        for num_steps in (200, 100, 50, 25):
            _fill(job, store, laboratory, Bowl(num_steps, schedule, TRIALS, TRIAL_SEEDS))


def measure_full(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Trainings of 400 steps under all schedules, with every seed."""
    for schedule in SCHEDULES:
        _fill(job, store, laboratory, Bowl(NUM_STEPS, schedule, FULL, ORACLE_SEEDS))


def measure_long(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Trainings of 200, 1,000 and 5,000 steps, constant and cosine, for the jobs that are cheap enough."""
    if job.long:
        _fill(job, store, laboratory, Bowl(5000, "constant", THIN, ORACLE_SEEDS[:2]))
        _fill(job, store, laboratory, Bowl(1000, "constant", HALF, ORACLE_SEEDS[:3]))
        _fill(job, store, laboratory, Bowl(1000, "cosine", HALF, ORACLE_SEEDS[:3]))
        _fill(job, store, laboratory, Bowl(200, "cosine", HALF, ORACLE_SEEDS[:3]))
        _fill(job, store, laboratory, Bowl(5000, "cosine", THIN, ORACLE_SEEDS[:2]))


def measure_long_full(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Linear decay at these lengths too, and more seeds."""
    if job.long:
        for num_steps, num_seeds, seeds in ((200, FULL, 4), (1000, FULL, 4), (5000, HALF, 3)):
            for schedule in SCHEDULES:
                _fill(job, store, laboratory, Bowl(num_steps, schedule, num_seeds, ORACLE_SEEDS[:seeds]))


def measure_sweeps(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Sweeps of 100 steps over lrrunner's range, as far as it extends it, and over the peers' own ranges."""
    for seed in SWEEP_SEEDS:
        _sweep_as_product(store, laboratory, 100, seed)
        for start_lr, end_lr in PEER_RANGES.values():
            _sweep(store, laboratory, Ladder(start_lr, end_lr, 100, seed))


def measure_other_sweeps(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Sweeps of other lengths."""
    for num_steps in SWEEP_LENGTHS:
        for seed in SWEEP_SEEDS:
            _sweep_as_product(store, laboratory, num_steps, seed)


def measure_lr_free(job: Job, store: Store, laboratory: Callable[[], Laboratory]) -> None:
    """Trainings of 400 steps by optimizers that need no LR, as far as their packages are installed."""
    for name, optimizer in LR_FREE.items():
        for schedule, seed in itertools.product(optimizer.schedules if optimizer.version else (), ORACLE_SEEDS):
            if seed not in store.lr_free.get(name, {}).get((NUM_STEPS, schedule), {}):
                loss = laboratory().trained_without_lr(name, num_steps=NUM_STEPS, schedule=schedule, seed=seed)
                store.add("lr_free", name, optimizer.version, NUM_STEPS, schedule, seed, rounded(loss))


STAGES: dict[str, Stage] = {
    "constant": measure_constant,
    "sweeps": measure_sweeps,
    "other_sweeps": measure_other_sweeps,
    "decaying": measure_decaying,
    "trials": measure_trials,
    "long": measure_long,
    "decaying_trials": measure_decaying_trials,
    "full": measure_full,
    "long_full": measure_long_full,
    "lr_free": measure_lr_free,
}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the real data; without it, jobs on embedded data alone")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="in this order")
    parser.add_argument("--only", default=".*", help="measure only the jobs that match this pattern")
    parser.add_argument("--reverse", action="store_true", help="last jobs first, beside another process")
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS, help="folder of the files it appends to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.measurements.mkdir(exist_ok=True)
    for name, optimizer in LR_FREE.items():
        if "lr_free" in arguments.stages and not optimizer.version:
            print(f"lr_free goes without {name}; pip install {optimizer.package} to measure it")
    chosen = [job for job in jobs() if re.fullmatch(arguments.only, job.name) and (arguments.data or not job.real)]
    for stage in arguments.stages:
        for job in reversed(chosen) if arguments.reverse else chosen:
            path = arguments.measurements / f"{job.name}.jsonl"
            with _held(path) as is_mine:
                if is_mine:
                    _measure(stage, job, arguments.data, path)


def _measure(stage: str, job: Job, folder: Path | None, path: Path) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    laboratory = functools.cache(lambda: Laboratory(job, folder))
    STAGES[stage](job, Store(path), laboratory)
    if laboratory.cache_info().currsize:
        seconds = f"{time.process_time() - cpu:.0f} s CPU, {time.perf_counter() - began:.0f} s"
        print(f"{time.strftime('%H:%M:%S')} {stage} {job.name}: {seconds}", flush=True)
    laboratory.cache_clear()
    for function in vars(splits).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()
    gc.collect()


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether this process holds the file of a job; another one may."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _fill(job: Job, store: Store, laboratory: Callable[[], Laboratory], bowl: Bowl) -> None:
    """Do the trainings of a bowl."""
    start = _first_position(job, store, bowl)
    while training := next_training(store, bowl, start=start):
        num_steps, schedule, position, seed = training
        keeps_prefixes = schedule == "constant" and not job.warmup
        at = [length for length in LENGTHS if length <= num_steps] if keeps_prefixes else [num_steps]
        losses = laboratory().trained(lr_at(position), num_steps=num_steps, schedule=schedule, seed=seed, at=at)
        for length, loss in losses.items():
            if seed not in store.trainings.get((length, schedule), {}).get(position, {}):
                store.add("train", length, schedule, position, seed, rounded(loss))


def _first_position(job: Job, store: Store, bowl: Bowl) -> int:
    """Where the search begins: the best position of the nearest length, else the optimizer's usual LR."""
    candidates = sorted(
        (length != bowl.num_steps, schedule != bowl.schedule, abs(length - bowl.num_steps), length, schedule)
        for length, schedule in store.trainings
    )
    for *_, length, schedule in candidates:
        losses = robust_losses(store.trainings[length, schedule])
        return min(losses, key=lambda position: losses[position])
    return 2 * round(position_of(USUAL_LR[job.optimizer]) / 2)


def _sweep_as_product(store: Store, laboratory: Callable[[], Laboratory], num_steps: int, seed: int) -> None:
    """The sweeps that lrrunner would do by default: it may extend the range twice."""
    while True:
        try:
            range_test(store, num_steps, seed)
        except MissingError as missing:
            _sweep(store, laboratory, missing.ladder)
        else:
            return


def _sweep(store: Store, laboratory: Callable[[], Laboratory], ladder: Ladder) -> None:
    if ladder not in store.sweeps:
        losses, norms = laboratory().swept(ladder)
        store.add("sweep", *ladder, [rounded(loss) for loss in losses], [rounded(norm, 4) for norm in norms])


if __name__ == "__main__":
    main()
