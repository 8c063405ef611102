"""Objects of a script that cannot be swept are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.fsdp
from torch import nn

import lrrunner
from lrrunner.library.arguments.script_objects import ScriptObjects, accelerator_errors, object_errors
from tests.multiprocess.sweeps import small_model, squared_error
from tests.unit.library.script import loader, swept
from tests.unit.training.optimizer.unusual_optimizers import Lookahead


def test_an_optimizer_must_be_one_without_a_closure_that_holds_this_model_only() -> None:
    """Only the parameters of the model are restored."""
    model, other = small_model(), small_model()
    for given, message in (
        ([1, 2], "optimizer must be one optimizer, got 2; sweep one at a time"),
        (3, "optimizer must be a torch.optim.Optimizer, got int"),
        (torch.optim.LBFGS(model.parameters()), "optimizer must step without a closure, got LBFGS"),
        (torch.optim.SGD(other.parameters(), lr=0.1), "got none of them; give the optimizer of this model"),
        (torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1), "got 4 others"),
        (Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)), "got Lookahead around SGD; sweep with an optimizer"),
        (SimpleNamespace(base=torch.optim.SGD(model.parameters(), lr=0.1)), "got SimpleNamespace, which wraps one"),
    ):
        with pytest.raises(ValueError, match="wrong") as caught:
            swept(model, given)
        assert message in str(caught.value)


def test_an_accelerator_must_leave_the_steps_to_the_caller() -> None:
    """DeepSpeed steps inside of backward; the message names what to sweep instead."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator: Any
    for accelerator, message in (
        (SimpleNamespace(distributed_type="DistributedType.DEEPSPEED"), "sweep the same global batch with DDP"),
        (SimpleNamespace(distributed_type="DistributedType.XLA"), "with DDP or with FSDP2, got XLA"),
        (
            SimpleNamespace(distributed_type="DistributedType.NO", mixed_precision="fp8"),
            "accelerator must compute in fp32, fp16 or bf16, got fp8",
        ),
        (3, "accelerator must be an accelerate.Accelerator or None, got int"),
    ):
        with pytest.raises(ValueError, match="wrong") as caught:
            lrrunner.range_test(accelerator, model, optimizer, loader(), squared_error)
        assert message in str(caught.value)
    assert accelerator_errors(None) == []


def test_a_model_must_be_a_module_with_trainable_parameters() -> None:
    """Refused before the first step."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="model must be a torch"):
        lrrunner.range_test(None, 3, optimizer, loader(), squared_error)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model must have trainable parameters, got none in Sequential; unfreeze some"):
        swept(model.requires_grad_(False), optimizer)


class Wrapped(torch.nn.Sequential):
    """In place of FSDP1's wrapper, which needs a GPU."""


def test_fsdp_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flat parameters cannot be restored shard by shard."""
    monkeypatch.setattr(torch.distributed.fsdp, "FullyShardedDataParallel", Wrapped)
    with pytest.raises(ValueError, match="model must be sharded with FSDP2, got FSDP1 in Wrapped; set fsdp_version=2"):
        swept(Wrapped(small_model()))


def errors_of_model(model: nn.Module, **options: Any) -> list[str]:
    """Refusals of a call with this model and an optimizer for it."""
    parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p)] or [nn.Parameter(torch.ones(1))]
    objects = ScriptObjects(
        accelerator=None,
        model=model,
        optimizer=torch.optim.SGD(parameters, lr=0.1),
        train_loader=[torch.zeros(1, 2)],
        loss_fn=lambda model, batch: model(batch).sum(),
        scaler=None,
    )
    return object_errors(objects, world_size=1, **options)


def test_an_optimizer_must_have_an_lr() -> None:
    """lr=None is Adafactor's way to set its own; lr=0 leaves nothing to keep ratios to. One message each."""
    for lr, shown in ((None, "None"), (0.0, "0.0")):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] = lr
        with pytest.raises(ValueError, match=r"the arguments are wrong \(1 error\)") as caught:
            swept(model, optimizer)
        assert f"optimizer.lr must be a number above 0 in every group, got {shown}; " in str(caught.value)
        assert "relative_step=False" in str(caught.value)


def test_lazy_modules_must_see_a_batch_first() -> None:
    """torch raises about uninitialised parameters somewhere in a snapshot."""
    assert errors_of_model(nn.LazyLinear(2))[0] == (
        "model must have its parameters, got lazy ones in LazyLinear; run one batch through it first"
    )


def test_a_fabric_optimizer_says_what_to_give_instead() -> None:
    """Fabric's wrapper is no torch optimizer, and holds one."""
    fabric = type("_FabricOptimizer", (), {"__module__": "lightning.fabric.wrappers"})()
    fabric.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    model = nn.Linear(2, 2)
    objects = ScriptObjects(
        accelerator=None, model=model, optimizer=fabric, train_loader=[1], loss_fn=lambda m, b: m, scaler=None
    )
    (error,) = [text for text in object_errors(objects, world_size=1) if text.startswith("optimizer")]
    assert "got Fabric's _FabricOptimizer; give optimizer.optimizer" in error


@pytest.mark.parametrize(
    ("without_gradients", "got"),
    [
        (torch.no_grad, "got torch.no_grad() or torch.set_grad_enabled(False); move the call out of it"),
        (torch.inference_mode, "got torch.inference_mode(); move the call out of it"),
    ],
)
def test_a_call_where_torch_records_no_gradients_is_refused(without_gradients: Any, got: str) -> None:
    """torch says that element 0 of tensors does not require grad."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with without_gradients(), pytest.raises(ValueError, match="range_test must compute gradients") as caught:
        swept(model, optimizer)
    assert got in str(caught.value)


def test_a_model_that_was_constructed_in_inference_mode_is_refused() -> None:
    """Its parameters never get a gradient."""
    with torch.inference_mode():
        model = small_model()
    (error,) = errors_of_model(model)
    assert error.endswith("constructed within torch.inference_mode(); construct it outside of it")
