"""Stage B: components are built, or every error is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from lrrunner.worker.building.build import Components, build
from lrrunner.worker.building.execution_settings import ExecutionSettings, execution_settings
from tests.composing import composed

HERE = "tests.unit.worker.building.test_build"


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
    """An iterable dataset without a length, of one sample unless its kind says otherwise."""

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.source = iter([torch.zeros(64)] * 64)

    def __iter__(self) -> Iterator[Any]:
        if self.kind == "once":
            yield from ((inputs, 0) for inputs in self.source)
        elif self.kind == "broken":
            raise FileNotFoundError("no shards in /data")
        elif self.kind != "empty":
            yield from [(torch.zeros(64), 0)] * (64 if self.kind == "long" else 1)


def generator() -> Iterator[Any]:
    return iter(Stream("long"))


class NoLength:
    """Neither map-style nor iterable."""

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(64), 0


def not_a_module() -> int:
    return 3


def stage_b(*overrides: str) -> tuple[Components | None, list[str]]:
    """Components and messages of stage B for one process on a CPU."""
    job = composed(*overrides)
    errors: list[str] = []
    device = torch.device("cpu")
    settings = execution_settings(job, device=device, errors=errors)
    return build(job, settings, device=device, errors=errors), errors


def built(*overrides: str) -> Components:
    """The components of a job without errors."""
    components, errors = stage_b(*overrides)
    assert errors == []
    assert components is not None
    return components


ERRORS = {
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
        "data.train must give at least one global batch of 64 samples each time it is iterated, got 1; lower data.globa"
    ),
    ("optimizer=custom", "optimizer._target_=torch.optim.LBFGS"): "optimizer must step without a closure, got LBFGS,",
    ("optimizer=custom", "optimizer._target_=torch.nn.ParameterList"): "optimizer must be a torch.optim.Optimizer,",
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

ERRORS |= {
    ("confirm.enabled=true", "+data.val.foo=1"): "data.val must take the arguments it is given: lrrunner.tasks.data.d",
    ("confirm.enabled=true", "data.val.split=test"): (
        "data.val could not be built: lrrunner.tasks.data.digits raised ValueError: split must be one of train, val;"
    ),
    (*OWN_DATA, f"data.val={{_target_: {HERE}.samples, size: 0}}"): (
        "data.val must hold samples, got none; check its folder and arguments"
    ),
    (*OWN_DATA, f"data.val={{_target_: {HERE}.Stream, kind: empty}}"): (
        "data.val must give samples each time it is iterated, got none; check its files"
    ),
    ("sweep.monitor=val", *OWN_DATA[1:], f"data.val={{_target_: {HERE}.Stream}}"): (
        "data.val must give at least one global batch of 64 samples each time it is iterated, got 1; lower data.global_"
    ),
    ("sweep.monitor=val", *OWN_DATA[1:], f"data.val={{_target_: {HERE}.samples, size: 63}}"): (
        "data.val must hold at least one global batch of 64 samples for sweep.monitor=val, got 63; hold out more"
    ),
}


ERRORS |= {
    ("data.sampler={_target_: mine.draw}",): "data.sampler._target_ must be importable, got mine.draw (No module",
    ("data.sampler={_target_: torch.utils.data.WeightedRandomSampler, weights: [1.0], num_samples: 9}",): (
        "data.sampler must take the arguments it is given: torch.utils.data.WeightedRandomSampler multiple values for "
        "argument 'weights'; correct the keys of data.sampler, or name a function that is called with data.train, and "
    ),
    ("data.sampler={_target_: torch.utils.data.SubsetRandomSampler}",): (
        "data.sampler must give a torch Sampler of sample indices, one weight per sample (floats), or the indices of "
        "an epoch (integers), got a sampler of tuple; give indices, one at a time"
    ),
    (f"data.sampler={{_target_: {HERE}.fifty}}",): (
        "data.sampler must give at least one global batch of 64 samples in each epoch, got 50 in epoch 0; draw more"
    ),
}


STREAM = ("data=custom", "data.global_batch_size=64", f"data.train._target_={HERE}.Stream")

ERRORS |= {
    (*STREAM, "+data.train.kind=once"): "data.train must start again each time it is iterated, got no samples from St",
    (*STREAM, "+data.train.kind=broken"): (
        "data.train must give samples, got FileNotFoundError: no shards in /data; correct what Stream reads"
    ),
    (*STREAM, "+data.train.kind=long", f"data.sampler={{_target_: {HERE}.fifty}}"): (
        "data.sampler must be null for an iterable data.train, whose samples have no indices, got tests.unit.worker."
    ),
    ("data=custom", "data.global_batch_size=64", f"data.train._target_={HERE}.generator"): (
        "data.train must be a map-style or an iterable data set, got generator; return an object with a length and an "
    ),
    ("data=custom", "data.global_batch_size=64", f"data.train._target_={HERE}.NoLength"): (
        "data.train must have a length and an index, got NoLength; give it a __len__, or make it a torch.utils.data.I"
    ),
}


def test_an_iterable_data_set_has_no_length() -> None:
    """It is read as far as a global batch, and begun again."""
    datasets = built(*STREAM, "+data.train.kind=long", "confirm.enabled=true", "data.val=null").datasets
    assert datasets.num_samples is None


def fifty(dataset: Any) -> list[int]:
    return list(range(50))


def test_a_sampler_may_draw_more_than_a_small_data_set_holds() -> None:
    """It then need not hold a global batch."""
    datasets = built(
        "data=custom",
        f"data.train._target_={HERE}.samples",
        "+data.train.size=9",
        "data.global_batch_size=64",
        "data.sampler={_target_: torch.utils.data.RandomSampler, replacement: true, num_samples: 100}",
    ).datasets
    assert len(datasets.order(dataset_size=9, seed=0, repeat=0, epoch=0)) == 100


def test_the_validation_set_is_built_where_it_is_read_only() -> None:
    """It may be large, and a sweep alone does not read it."""
    for overrides, size in (
        ((), None),
        (("confirm.enabled=true",), 360),
        (("sweep.monitor=val",), 360),
        (("confirm.enabled=true", "data.val=null"), None),
    ):
        validation: Any = built(*overrides).datasets.validation
        assert (None if validation is None else len(validation)) == size


@pytest.mark.parametrize("overrides", ERRORS, ids=" ".join)
def test_a_component_that_cannot_be_built_is_named(overrides: tuple[str, ...]) -> None:
    """A configuration error gives no traceback of ours, but the key, the rule and the value."""
    components, errors = stage_b(*overrides)
    assert components is None
    assert errors[0].startswith(ERRORS[overrides])


def test_errors_of_independent_components_are_reported_together() -> None:
    """One run shows all of them."""
    _, errors = stage_b("+model.widht=3", "loss._target_=torch.nn.Nope", "+optimizer.x=1", "train.mixed_precision=fp16")
    assert [error.split()[0] for error in errors] == [
        "train.mixed_precision",
        "model",
        "loss._target_",
        "optimizer",
    ]


def test_a_model_that_cannot_be_sharded_is_a_configuration_error() -> None:
    """Here there is no process group; torch has other reasons, such as parameters without a dimension."""
    errors: list[str] = []
    settings = ExecutionSettings(mixed_precision="fp32", dynamo_backend="no", fsdp=True)
    assert build(composed(), settings, device=torch.device("cpu"), errors=errors) is None
    assert errors[0].startswith("train.fsdp must be able to shard Mlp, got: ")
    assert errors[0].endswith("; use train.fsdp=false")


def groups(model: nn.Module) -> list[dict[str, Any]]:
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": biases, "weight_decay": 0.0, "lr": 1e-4},
    ]


def test_parameter_groups_come_from_a_target() -> None:
    """For example no weight decay on norms and biases."""
    param_groups = built(f"optimizer_groups={{_target_: {HERE}.groups}}").optimizer.param_groups
    assert [group["weight_decay"] for group in param_groups] == [0.01, 0.0]
    assert [group["lr"] for group in param_groups] == [1e-3, 1e-4]


def test_every_build_gives_the_same_weights() -> None:
    """Ranks, and runs, start from the same seed."""
    weights = []
    for _ in range(2):
        weights.append([p.detach().clone() for p in built().model.parameters()])
        torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(("num_workers", "length", "is_refused"), [(1, 76, True), (1, 75, False), (0, 200, False)])
def test_a_temporary_folder_without_room_for_the_sockets_of_workers_is_refused(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, length: int, is_refused: bool
) -> None:
    """Their first batch never arrived, and the sweep waited for it until launch.timeout_s."""
    monkeypatch.setattr("lrrunner.worker.building.build.tempfile.gettempdir", lambda: "/" + "x" * (length - 1))
    job, device = composed(f"data.dataloader.num_workers={num_workers}"), torch.device("cpu")
    errors: list[str] = []
    build(job, execution_settings(job, device=device, errors=errors), device=device, errors=errors)
    assert any("TMPDIR must have at most 75 characters" in error for error in errors) == is_refused
