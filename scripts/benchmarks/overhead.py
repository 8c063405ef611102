"""What a sweep costs over the bare training loop, in one run: python scripts/benchmarks/overhead.py [--repeats 9].

Everything trains the same models on the same data with the same batch size and optimizer (SGD, whose step is the
cheapest). On one rank: the bare loop of torch's tutorials, ``lrrunner.range_test``, the command line with tracking on
(sqlite), and torch-lr-finder and ignite where they are installed. Times are CPU time of the training thread from one
forward pass to the next, the median over the steps of a run; all of them take turns, so that a busy machine slows each
of them down. On two ranks: the loop of Accelerate's documentation, with one all-reduce of a small tensor a step,
since a loop that watches its loss needs one, against the command line; elapsed time. --gpu compares these two on one
rank on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import importlib.util
import io
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = {"0.6 ms": 128, "1.8 ms": 480, "20 ms": 1900, "20 ms, convolutions": -22}
"""Name -> hidden units of an MLP with 2 hidden layers, or minus the channels of a CNN."""

ELAPSED_MODELS = {"about 1 ms": 192, "about 10 ms": 1536}
GPU_MODELS = {"width 192": 192, "width 8192": 8192}
BATCH_PER_RANK = 64
START_LR, END_LR = 1e-7, 1e-3
STAMPS_VARIABLE = "OVERHEAD_STAMPS"

STAMPS: list[float] = []
"""CPU seconds of the training thread at each forward pass; uploads run in another one, for 1 % of the time at most."""


class StampedObjective:
    """The objective of the command line: cross-entropy, with a stamp; the stamps go to a file at exit."""

    def __init__(self) -> None:
        self._file = Path(os.environ[STAMPS_VARIABLE])

    def __call__(self, model: Any, batch: Any) -> Any:
        """The mean loss of a batch."""
        STAMPS.append(time.thread_time())
        if len(STAMPS) == int(os.environ["OVERHEAD_STEPS"]):
            self._file.write_text(str(seconds_per_step()))
        return cross_entropy(model(batch[0]), batch[1])


def cross_entropy(output: Any, target: Any) -> Any:
    """The mean loss."""
    import torch

    return torch.nn.functional.cross_entropy(output, target)


def seconds_per_step() -> float:
    """CPU seconds from one stamp to the next, the median: a busy machine disturbs some steps of each loop."""
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(STAMPS))


def components(width: int) -> tuple[Any, Any, Any]:
    """Model, optimizer and loader."""
    import torch
    from torch.utils.data import DataLoader

    from lrrunner.tasks.data import digits
    from lrrunner.tasks.models import Cnn, Mlp

    torch.manual_seed(0)
    model: Any = Mlp(in_features=64, hidden_features=width, num_hidden=2, num_classes=10) if width > 0 else None
    if width < 0:
        model = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 8, 8)), Cnn(in_channels=1, width=-width, num_classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=START_LR)
    loader = DataLoader(digits(split="train"), batch_size=BATCH_PER_RANK, shuffle=True, drop_last=True)
    return model, optimizer, loader


def bare(width: int, num_steps: int) -> float:
    """The loop without any finder."""
    model, optimizer, loader = components(width)
    STAMPS.clear()
    while True:
        for inputs, target in loader:
            STAMPS.append(time.thread_time())
            optimizer.zero_grad()
            cross_entropy(model(inputs), target).backward()
            optimizer.step()
            if len(STAMPS) == num_steps:
                return seconds_per_step()


def library_call(width: int, num_steps: int) -> float:
    """The call inside a script."""
    import lrrunner

    model, optimizer, loader = components(width)
    STAMPS.clear()

    def loss_fn(model: Any, batch: Any) -> Any:
        STAMPS.append(time.thread_time())
        inputs, target = batch
        return cross_entropy(model(inputs), target)

    options: dict[str, Any] = {"start_lr": START_LR, "end_lr": END_LR, "auto_range": False}
    lrrunner.range_test(None, model, optimizer, loader, loss_fn, num_steps=num_steps, **options)
    assert len(STAMPS) == num_steps
    return seconds_per_step()


def command_line(width: int, num_steps: int) -> float:
    """The command, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stamps = Path(folder) / "stamps"
        environment = {
            "PYTHONPATH": str(Path(__file__).resolve().parent),
            STAMPS_VARIABLE: str(stamps),
            "OVERHEAD_STEPS": str(num_steps),
        }
        objective = ["objective=custom", "objective._target_=overhead.StampedObjective"]
        launched(1, ["-m", "lrrunner", *overrides(width, num_steps, 1), *objective], folder, environment=environment)
        return float(stamps.read_text())


def torch_lr_finder(width: int, num_steps: int) -> float:
    """The peer of that name."""
    model, optimizer, loader = components(width)
    STAMPS.clear()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        finder = importlib.import_module("torch_lr_finder").LRFinder(model, optimizer, stamped_criterion, device="cpu")
        finder.range_test(loader, end_lr=END_LR, num_iter=num_steps)
    return seconds_per_step()


def ignite(width: int, num_steps: int) -> float:
    """The finder of ignite."""
    make_trainer = importlib.import_module("ignite.engine").create_supervised_trainer
    finder = importlib.import_module("ignite.handlers").FastaiLRFinder()
    model, optimizer, loader = components(width)
    STAMPS.clear()
    trainer, saved = make_trainer(model, optimizer, stamped_criterion), {"model": model, "optimizer": optimizer}
    with finder.attach(trainer, saved, num_iter=num_steps, start_lr=START_LR, end_lr=END_LR) as attached:
        attached.run(loader)
    return seconds_per_step()


def stamped_criterion(output: Any, target: Any) -> Any:
    """Peers call the model by themselves, so that their stamp follows the forward pass: the same in each step."""
    STAMPS.append(time.thread_time())
    return cross_entropy(output, target)


WAYS: dict[str, Callable[[int, int], float]] = {"library": library_call, "command line": command_line}
PEERS = {"torch_lr_finder": torch_lr_finder, "ignite": ignite}


def main() -> None:
    """Measure, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--one-rank", action="store_true", help="leave out two ranks")
    parser.add_argument("--gpu", action="store_true", help="on a GPU instead of CPUs")
    parser.add_argument("--bare", type=int, metavar="WIDTH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(accelerate_loop(arguments.bare, arguments.steps, on_cpu=not arguments.gpu))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    if not arguments.gpu:
        print_cpu_time(arguments.repeats, arguments.steps)
    if not arguments.one_rank:
        print_elapsed_time(1 if arguments.gpu else 2, arguments)


def print_cpu_time(repeats: int, num_steps: int) -> None:
    """One rank: CPU time of everything that is installed, in turns."""
    import torch

    torch.set_num_threads(1)
    ways = WAYS | {name: way for name, way in PEERS.items() if importlib.util.find_spec(name)}
    print(f"| step | bare loop, ms a step | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}")
    for name, width in MODELS.items():
        steps = num_steps if "20" not in name else num_steps // 5
        rows = [(bare(width, steps), *(way(width, steps) for way in ways.values())) for _ in range(repeats)]
        base = statistics.median(row[0] for row in rows)
        cells = [ratio([row[i] / row[0] for row in rows]) for i in range(1, len(rows[0]))]
        print(f"| {name} | {base * 1e3:.2f} | {' | '.join(cells)} |", flush=True)


def ratio(ratios: list[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def print_elapsed_time(world_size: int, arguments: argparse.Namespace) -> None:
    """Elapsed time of the command line against the loop of Accelerate, and of the whole processes."""
    print("\n| ranks | step | Accelerate's loop, ms a step | sweep, ms a step | ratio, loop | ratio, process |")
    print("|---|---|---|---|---|---|")
    for name, width in (GPU_MODELS if arguments.gpu else ELAPSED_MODELS).items():
        run = (world_size, width, arguments.steps)
        pairs = [
            (run_loop(*run, gpu=arguments.gpu), run_sweep(*run, gpu=arguments.gpu)) for _ in range(arguments.repeats)
        ]
        loop = ratio([sweep[0] / loop[0] for loop, sweep in pairs])
        process = statistics.median(sweep[1] / loop[1] for loop, sweep in pairs)
        loop_ms, sweep_ms = (statistics.median(pair[i][0] for pair in pairs) * 1e3 for i in (0, 1))
        print(f"| {world_size} | {name} | {loop_ms:.2f} | {sweep_ms:.2f} | {loop} | {process:.2f} |", flush=True)


def run_loop(world_size: int, width: int, num_steps: int, *, gpu: bool) -> tuple[float, float]:
    """Elapsed seconds a step of Accelerate's loop, and of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        arguments = [str(Path(__file__).resolve()), "--bare", str(width), "--steps", str(num_steps)]
        out = launched(world_size, [*arguments, "--gpu"] if gpu else arguments, folder, gpu=gpu)
        return float(out.strip().splitlines()[-1]), time.perf_counter() - started


def run_sweep(world_size: int, width: int, num_steps: int, *, gpu: bool) -> tuple[float, float]:
    """The same of a sweep, from its own records."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        launched(world_size, ["-m", "lrrunner", *overrides(width, num_steps, world_size)], folder, gpu=gpu)
        seconds = time.perf_counter() - started
        with (Path(folder) / "run" / "records.csv").open() as file:
            elapsed = [float(record["elapsed_s"]) for record in csv.DictReader(file)]
        assert len(elapsed) == num_steps
        return (elapsed[-1] - elapsed[0]) / (num_steps - 1), seconds


def overrides(width: int, num_steps: int, world_size: int) -> list[str]:
    """The sweep on the command line."""
    model = [f"model.hidden_features={width}"]
    if width < 0:
        model = ["model=custom", "model._target_=overhead.components_model", f"+model.width={width}"]
    return [
        *model,
        "optimizer=sgd",
        f"sweep.num_steps={num_steps}",
        "run.dir=run",
        f"sweep.end_lr={END_LR}",
        "sweep.auto_range=false",
        f"data.global_batch_size={BATCH_PER_RANK * world_size}",
    ]


def components_model(width: int) -> Any:
    """The model alone, for the command line."""
    return components(width)[0]


def launched(
    world_size: int, arguments: list[str], folder: str, *, gpu: bool = False, environment: dict[str, str] | None = None
) -> str:
    """Standard output of a Python command, on one process or under accelerate launch."""
    command = [sys.executable]
    if world_size > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes"]
        command += [str(world_size), "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    own = {"OMP_NUM_THREADS": "1", **({} if gpu else {"ACCELERATE_USE_CPU": "1"}), **(environment or {})}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accelerate_loop(width: int, num_steps: int, *, on_cpu: bool) -> float:
    """Elapsed seconds a step, from the end of the first step to the end of the last."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=on_cpu)
    model, optimizer, loader = accelerator.prepare(*components(width))
    step, started = 0, 0.0
    while step < num_steps:
        for inputs, target in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), target)
            accelerator.backward(loss)
            optimizer.step()
            if accelerator.num_processes > 1:
                torch.distributed.all_reduce(loss.detach())
            step += 1
            if step in (1, num_steps) and not on_cpu:
                torch.cuda.synchronize()
            if step == 1:
                started = time.perf_counter()
            if step == num_steps:
                break
    seconds = (time.perf_counter() - started) / (num_steps - 1)
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - one rank prints
    del model, optimizer, loader
    accelerator.free_memory()
    accelerator.end_training()
    return seconds


if __name__ == "__main__":
    main()
