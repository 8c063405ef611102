"""Launcher and configuration agree on precision, compiler and FSDP, or contradict each other."""

from __future__ import annotations

import pytest
import torch

from lrrunner.config.schema import Precision
from lrrunner.worker.building.execution_settings import ExecutionSettings, execution_settings, with_settings
from tests.composing import composed


def settings_of(*overrides: str, world_size: int = 1) -> tuple[ExecutionSettings, list[str]]:
    """Settings and messages for a job on CPUs."""
    errors: list[str] = []
    job = composed(*overrides, world_size=world_size)
    settings = execution_settings(job, device=torch.device("cpu"), errors=errors, world_size=world_size)
    return settings, errors


def test_precision_inherits_from_the_launcher_and_must_not_contradict_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """null inherits; an explicit value that differs from ``accelerate launch`` is an error."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    _, (error,) = settings_of("train.mixed_precision=fp32")
    assert error.startswith("train.mixed_precision must agree with accelerate launch --mixed_precision=bf16, got fp32;")
    assert settings_of()[0].mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert settings_of()[1] == ["train.mixed_precision must be one of fp32, bf16, fp16; got fp8 from accelerate launch"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.mixed_precision=fp16", "train.mixed_precision must not be fp16 on a CPU, got fp16; use bf16 or fp32"),
        ("train.sync_batchnorm=true", "train.sync_batchnorm must be false on a CPU (torch has none there), got true;"),
    ],
)
def test_what_a_cpu_does_not_have_is_refused(override: str, message: str) -> None:
    """Before anything is built."""
    (error,) = settings_of(override)[1]
    assert error.startswith(message)


def test_compile_inherits_contradicts_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule as for precision."""
    assert settings_of("train.compile=true")[0].dynamo_backend == "inductor"
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert settings_of()[0].dynamo_backend == "eager"
    assert "train.compile must agree" in settings_of("train.compile=false")[1][0]


def fsdp(*overrides: str, world_size: int = 2) -> tuple[bool, list[str]]:
    """Whether parameters are sharded, and the messages."""
    errors: list[str] = []
    job = composed(*overrides, world_size=2)
    return execution_settings(job, device=torch.device("cpu"), errors=errors, world_size=world_size).fsdp, errors


def test_fsdp_inherits_contradicts_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule as for precision; other FSDP settings of the launcher are followed or refused."""
    assert fsdp() == (False, [])
    assert fsdp("train.fsdp=true") == (True, [])
    assert fsdp("train.fsdp=true", "train.ddp.static_graph=true")[1] == [
        "train.ddp.static_graph must be false with train.fsdp, which has no use for it, got true; drop it"
    ]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert fsdp() == (True, [])
    assert fsdp("train.fsdp=false")[1] == [
        "train.fsdp must agree with accelerate launch --use_fsdp, got false; leave one of the two out"
    ]
    (hidden,) = fsdp("sweep.noise_scale=true")[1]
    assert hidden.startswith("sweep.noise_scale must be false under train.fsdp")
    assert fsdp(world_size=1)[1] == [
        "train.fsdp must be false on 1 rank, got true; start several ranks with launch.num_processes=2, say"
    ]
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert fsdp()[1] == [
        "train.fsdp must be version 2, got accelerate launch --fsdp_version 1; use 2",
        "train.fsdp must go without accelerate launch --fsdp_offload_params, got true; shards stay on their device",
    ]


def test_the_resolved_configuration_holds_the_settings() -> None:
    """config.yaml records what was used, not null."""
    settings = ExecutionSettings(mixed_precision="bf16", dynamo_backend="inductor", fsdp=True)
    train = with_settings(composed(), settings).train
    assert (train.mixed_precision, train.compile, train.fsdp) == (Precision.bf16, True, True)
