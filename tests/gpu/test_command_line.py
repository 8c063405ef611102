"""Whole command lines on a GPU, in every arithmetic."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.gpu.sweeps import DEVICES_OF_LAUNCHES
from tests.integration.launching import NO_TRACKING, command, environment

CNN = ("experiment=digits_cnn_sgd", "train.sync_batchnorm=true")
NOISE = ("sweep.noise_scale=true", "train.accumulation_steps=2")


def run_on(device: str, folder: Path, *overrides: str) -> tuple[Path, str]:
    """Run directory and standard output of a run that must end well."""
    settings = {"ACCELERATE_USE_CPU": "1"} if device == "cpu" else {}
    done = subprocess.run(
        command(1, ["run.dir=run", *NO_TRACKING, *overrides]),
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def suggested_lr(run: Path, device: str) -> float:
    """What a run on that device has suggested."""
    assert f", on {device}" in (run / "ranks/0.log").read_text()
    suggestion = json.loads((run / "suggestion.json").read_text())
    assert suggestion["verdict"] == "ok", suggestion
    lr: float = suggestion["lr"]
    return lr


@pytest.mark.parametrize("device", DEVICES_OF_LAUNCHES)
def test_bf16(device: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The default job suggests 3e-3; eight bits of mantissa move that little."""
    run, _ = run_on(device, tmp_path, "train.mixed_precision=bf16", *NOISE)
    lr = suggested_lr(run, device)
    record_property("suggested lr", f"{lr:.1e}")
    assert 1e-3 < lr < 1e-2
    noise = json.loads((run / "suggestion.json").read_text())["noise_scale"]
    assert 20 < noise["low"] < noise["critical_batch_size"] < 500


@pytest.mark.gpu
@pytest.mark.parametrize(
    "overrides",
    [
        ("data.dataloader.num_workers=2", "launch.num_processes=1"),
        ("train.mixed_precision=fp16", *NOISE),
        ("train.mixed_precision=fp16", "train.max_grad_norm=1.0", "optimizer=momentum"),
        ("train.compile=true",),
        ("train.compile=true", "train.mixed_precision=bf16", *NOISE),
        CNN,
        ("sweep.sync_every_step=true",),
    ],
    ids=["fp32", "fp16", "fp16_clipped", "compile", "compile_bf16", "sync_batchnorm", "sync_every_step"],
)
def test_every_regime(
    overrides: tuple[str, ...], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """One GPU, one rank."""
    run, _ = run_on("cuda", tmp_path, *overrides)
    lr = suggested_lr(run, "cuda")
    record_property("suggested lr", f"{lr:.1e}")
    assert 5e-4 < lr < 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", [("sweep.noise_scale=true", *CNN), ("train.fsdp=true",)], ids=["ddp", "fsdp"])
def test_two_gpus(overrides: tuple[str, ...], tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """NCCL wants a GPU a rank."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs; one was found")
    run, _ = run_on("cuda", tmp_path, "launch.num_processes=2", *overrides)
    record_property("suggested lr", f"{suggested_lr(run, 'cuda'):.1e}")
