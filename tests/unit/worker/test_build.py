"""Stage B: names become objects, or messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from lrrunner.worker.build import ExecutionSettings, build, execution_settings
from tests.composing import composed

HERE = "tests.unit.worker.test_build"


class Frozen(nn.Module):
    """No trainable parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)


def exploding() -> nn.Module:
    raise ZeroDivisionError("width of zero")


def samples(size: int) -> TensorDataset:
    return TensorDataset(torch.zeros(size, 64), torch.zeros(size, dtype=torch.int64))


class Stream(IterableDataset[Any]):
    """No length."""

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(64), 0


def not_a_module() -> int:
    return 3


def stage_b(*overrides: str) -> list[str]:
    """The messages of stage B for one process on a CPU."""
    job = composed(*overrides)
    errors: list[str] = []
    device = torch.device("cpu")
    execution_settings(job, device=device, errors=errors)
    parts = build(job, device=device, errors=errors)
    assert (parts is None) == bool([e for e in errors if not e.startswith(("train.", "the launcher"))])
    return errors


CUSTOM = {part: [f"{part}=custom", f"{part}._target_={HERE}."] for part in ("model", "data.train")}

MISTAKES = {
    ("model=custom", "model._target_=mine.Net"): "model._target_ must be importable, got mine.Net (No module named",
    ("loss._target_=torch.nn.Nope",): "loss._target_ must be importable, got torch.nn.Nope (",
    (
        "+model.widht=3",
    ): "model must take the arguments it is given: lrrunner.tasks.models.Mlp got an unexpected keyword",
    ("~model.num_classes",): "model must take the arguments it is given: lrrunner.tasks.models.Mlp missing a required",
    ("+optimizer.momentun=0.9",): "optimizer must take the arguments it is given: torch.optim.AdamW got an unexpected",
    ("+data.val.foo=1",): "data.val must take the arguments it is given: lrrunner.tasks.data.digits got an unexpected",
    ("model=custom", f"model._target_={HERE}.exploding"): (
        f"model could not be built: {HERE}.exploding raised ZeroDivisionError: width of zero"
    ),
    ("model=custom", f"model._target_={HERE}.Frozen"): "model must have trainable parameters, got none in Frozen;",
    ("model=custom", f"model._target_={HERE}.not_a_module"): "model must be a torch.nn.Module, got int;",
    ("data=custom", f"data.train._target_={HERE}.samples", "+data.train.size=0", "data.global_batch_size=64"): (
        "data.train must hold samples, got none; check its folder and arguments"
    ),
    ("data=custom", f"data.train._target_={HERE}.samples", "+data.train.size=63", "data.global_batch_size=64"): (
        "data.train must hold at least one global batch of 64 samples, got 63; lower data.global_batch_size"
    ),
    ("data=custom", f"data.train._target_={HERE}.Stream", "data.global_batch_size=64"): (
        "data.train must have a length and an index, got Stream;"
    ),
    ("optimizer=custom", "optimizer._target_=torch.optim.LBFGS"): "optimizer must step without a closure, got LBFGS,",
    ("optimizer=custom", "optimizer._target_=torch.nn.ParameterList"): "optimizer must be a torch.optim.Optimizer,",
    ("train.mixed_precision=fp16",): "train.mixed_precision must not be fp16 on a CPU, got fp16; use bf16 or fp32",
    ("train.sync_batchnorm=true",): "train.sync_batchnorm must be false on a CPU (torch has none there), got true;",
    ("data=text", "data.root=/nowhere.txt", "loss=cross_entropy", "+data.val.x=1"): "data.train could not be built:",
    ("data=mnist", "data.root=/dev/null/mnist", "data.val=null"): (
        "data.train could not be built: lrrunner.tasks.data.mnist raised FileNotFoundError: "
        "/dev/null/mnist/train-images-idx3-ubyte.gz is missing and could not be downloaded"
    ),
}


OWN_DATA = (
    "confirm.enabled=true",
    "data=custom",
    f"data.train._target_={HERE}.samples",
    "+data.train.size=64",
    "data.global_batch_size=64",
)

MISTAKES |= {
    ("confirm.enabled=true", "+data.val.foo=1"): "data.val must take the arguments it is given: lrrunner.tasks.data.d",
    ("confirm.enabled=true", "data.val.split=test"): (
        "data.val could not be built: lrrunner.tasks.data.digits raised ValueError: split must be one of train, val;"
    ),
    (*OWN_DATA, f"data.val={{_target_: {HERE}.samples, size: 0}}"): (
        "data.val must hold samples, got none; check its folder and arguments"
    ),
    (*OWN_DATA, f"data.val={{_target_: {HERE}.Stream}}"): (
        "data.val must have a length and an index, got Stream; use a map-style dataset"
    ),
    ("sweep.monitor=val", *OWN_DATA[1:], f"data.val={{_target_: {HERE}.samples, size: 63}}"): (
        "data.val must hold at least one global batch of 64 samples for sweep.monitor=val, got 63; hold out more"
    ),
}


def test_the_validation_set_is_built_where_it_is_read_only() -> None:
    """It may be large, and a sweep alone does not read it."""
    for overrides, size in (
        ([], None),
        (["confirm.enabled=true"], 360),
        (["sweep.monitor=val"], 360),
        (["confirm.enabled=true", "data.val=null"], None),
    ):
        parts = build(composed(*overrides), device=torch.device("cpu"), errors=[])
        assert parts is not None
        validation: Any = parts.datasets.validation
        assert (None if validation is None else len(validation)) == size


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_a_part_that_cannot_be_built_is_named(overrides: tuple[str, ...]) -> None:
    """No traceback of ours for a user's mistake: the part, the rule and the value."""
    errors = stage_b(*overrides)
    assert errors[0].startswith(MISTAKES[overrides])


def test_errors_of_independent_parts_come_together() -> None:
    """One run, all mistakes."""
    errors = stage_b("+model.widht=3", "loss._target_=torch.nn.Nope", "+optimizer.x=1", "train.mixed_precision=fp16")
    assert [error.split()[0] for error in errors] == [
        "train.mixed_precision",
        "model",
        "loss._target_",
        "optimizer",
    ]


def test_the_launcher_and_the_configuration_must_not_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit value that differs from what `accelerate launch` was told is an error; null inherits."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    (error,) = stage_b("train.mixed_precision=fp32")
    assert error.startswith("train.mixed_precision must agree with accelerate launch --mixed_precision=bf16, got fp32;")
    inherited = execution_settings(composed(), device=torch.device("cpu"), errors=[])
    assert inherited.mixed_precision == "bf16"


def fsdp(*overrides: str, world_size: int = 2) -> tuple[bool, list[str]]:
    """Whether ranks shard, and the messages."""
    errors: list[str] = []
    job = composed(*overrides, world_size=2)
    return execution_settings(job, device=torch.device("cpu"), errors=errors, world_size=world_size).fsdp, errors


def test_fsdp_inherits_contradicts_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule as for precision; what the launcher says beyond the switch is followed or refused."""
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


def test_a_model_that_cannot_be_sharded_is_a_mistake() -> None:
    """Here for want of a process group; torch has other reasons, such as parameters without a dimension."""
    errors: list[str] = []
    chosen = ExecutionSettings(mixed_precision="fp32", dynamo_backend="no", fsdp=True)
    assert build(composed(), device=torch.device("cpu"), errors=errors, chosen=chosen) is None
    assert errors[0].startswith("train.fsdp must be able to shard Mlp, got: ")
    assert errors[0].endswith("; use train.fsdp=false")


def test_compile_inherits_contradicts_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule as for precision."""
    device = torch.device("cpu")
    asked = execution_settings(composed("train.compile=true"), device=device, errors=[])
    assert asked.dynamo_backend == "inductor"
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert execution_settings(composed(), device=device, errors=[]).dynamo_backend == "eager"
    assert "train.compile must agree" in stage_b("train.compile=false")[0]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": biases, "weight_decay": 0.0, "lr": 1e-4},
    ]


def test_parameter_groups_come_from_a_target() -> None:
    """No decay on norms and biases, say."""
    errors: list[str] = []
    job = composed(f"optimizer_groups={{_target_: {HERE}.groups}}")
    parts = build(job, device=torch.device("cpu"), errors=errors)
    assert errors == []
    assert parts is not None
    assert [group["weight_decay"] for group in parts.optimizer.param_groups] == [0.01, 0.0]
    assert [group["lr"] for group in parts.optimizer.param_groups] == [1e-3, 1e-4]


def test_every_build_gives_the_same_weights() -> None:
    """Ranks, and runs, start from the same seed."""
    job = composed()
    weights = []
    for _ in range(2):
        parts = build(job, device=torch.device("cpu"), errors=[])
        assert parts is not None
        weights.append([p.detach().clone() for p in parts.model.parameters()])
        torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
