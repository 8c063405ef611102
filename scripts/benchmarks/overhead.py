"""What a sweep costs over the bare training loop, in one run: python scripts/benchmarks/overhead.py [--repeats 5].

The bare loop is the one of Accelerate's own documentation: prepared model, optimizer and loader, forward, backward,
step; on two ranks with one all-reduce of a small tensor a step, since a loop that watches its loss needs one. The sweep
is the command line with tracking on (sqlite). Both train the same model on the same data with the same batch size,
alternately. --gpu does the same on one rank on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = {"about 1 ms": 192, "about 10 ms": 1536}
GPU_MODELS = {"width 192": 192, "width 8192": 8192}
BATCH_PER_RANK = 64


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--gpu", action="store_true", help="on a GPU instead of CPUs")
    parser.add_argument("--bare", type=int, metavar="WIDTH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(bare_loop(arguments.bare, arguments.steps, on_cpu=not arguments.gpu))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| ranks | step | bare loop, ms a step | sweep, ms a step | ratio, loop | ratio, process |")
    print("|---|---|---|---|---|---|")
    for world_size in (1,) if arguments.gpu else (1, 2):
        for name, width in (GPU_MODELS if arguments.gpu else MODELS).items():
            print(row(world_size, name, width, arguments), flush=True)


def row(world_size: int, name: str, width: int, arguments: argparse.Namespace) -> str:
    """Medians over alternating runs; the spread of the ratio is that of the pairs."""
    steps, gpu = arguments.steps, arguments.gpu
    pairs = [
        (run_bare(world_size, width, steps, gpu=gpu), run_sweep(world_size, width, steps, gpu=gpu))
        for _ in range(arguments.repeats)
    ]
    loop = [sweep[0] / bare[0] for bare, sweep in pairs]
    process = [sweep[1] / bare[1] for bare, sweep in pairs]
    bare_ms, sweep_ms = (statistics.median(pair[i][0] for pair in pairs) * 1000 for i in (0, 1))
    spread = f"{statistics.median(loop):.3f} ({min(loop):.3f} to {max(loop):.3f})"
    return f"| {world_size} | {name} | {bare_ms:.2f} | {sweep_ms:.2f} | {spread} | {statistics.median(process):.2f} |"


def run_bare(world_size: int, width: int, steps: int, *, gpu: bool) -> tuple[float, float]:
    """Seconds a step of the loop, and seconds of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        words = [str(Path(__file__).resolve()), "--bare", str(width), "--steps", str(steps)]
        if gpu:
            words.append("--gpu")
        out = launched(world_size, words, folder, gpu=gpu)
        return float(out.strip().splitlines()[-1]), time.perf_counter() - started


def run_sweep(world_size: int, width: int, steps: int, *, gpu: bool) -> tuple[float, float]:
    """The same of a sweep, from its own records."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"model.hidden_features={width}", "optimizer=sgd", f"sweep.num_steps={steps}", "run.dir=run"]
        overrides += [
            "sweep.end_lr=1e-3",
            "sweep.auto_range=false",
            f"data.global_batch_size={BATCH_PER_RANK * world_size}",
        ]
        started = time.perf_counter()
        launched(world_size, ["-m", "lrrunner", *overrides], folder, gpu=gpu)
        seconds = time.perf_counter() - started
        with (Path(folder) / "run" / "records.csv").open() as file:
            elapsed = [float(record["elapsed_s"]) for record in csv.DictReader(file)]
        assert len(elapsed) == steps
        return (elapsed[-1] - elapsed[0]) / (steps - 1), seconds


def launched(world_size: int, words: list[str], folder: str, *, gpu: bool) -> str:
    """Standard output of a Python command, on one process or under accelerate launch."""
    command = [sys.executable]
    if world_size > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes"]
        command += [str(world_size), "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", **({} if gpu else {"ACCELERATE_USE_CPU": "1"})}
    done = subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bare_loop(width: int, steps: int, *, on_cpu: bool) -> float:
    """Seconds a step, from the end of the first step to the end of the last."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from lrrunner.tasks.data import digits
    from lrrunner.tasks.models import Mlp

    accelerator = Accelerator(cpu=on_cpu)
    model = Mlp(in_features=64, hidden_features=width, num_hidden=2, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loader = DataLoader(digits(split="train"), batch_size=BATCH_PER_RANK, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = torch.nn.CrossEntropyLoss()
    step, started = 0, 0.0
    while step < steps:
        for inputs, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), target)
            accelerator.backward(loss)
            optimizer.step()
            if accelerator.num_processes > 1:
                torch.distributed.all_reduce(loss.detach())
            step += 1
            if step in (1, steps) and not on_cpu:
                torch.cuda.synchronize()
            if step == 1:
                started = time.perf_counter()
            if step == steps:
                break
    seconds = (time.perf_counter() - started) / (steps - 1)
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - one rank prints
    del model, optimizer, loader
    accelerator.free_memory()
    accelerator.end_training()
    return seconds


if __name__ == "__main__":
    main()
