"""The library call on several ranks: one sweep that leaves the training around it unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lrrunner
from lrrunner.training.fsdp import local_part
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.sweeps import regression_data, small_model, squared_error
from tests.multiprocess.trainings import forget_accelerate, trained

ROOT = Path(__file__).resolve().parents[3]

EVERYTHING = {"monitor": "val", "noise_scale": True, "confirm": 60, "training_steps": 200, "schedule": "cosine"}
"""Options with which a call measures all that it can."""

UNEQUAL_ITEMS = ((3, 5), (1, 7))
"""Items of each rank's two micro-batches."""


def plain_ddp() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The small model in DDP, without Accelerate."""
    model = DistributedDataParallel(small_model())
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def after_first_step(loader: Any, loss_fn: Any, **options: Any) -> tuple[lrrunner.RangeTest, list[torch.Tensor]]:
    """A sweep, and the gradient that its first step applied."""
    model, optimizer = plain_ddp()
    seen: list[torch.Tensor] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not seen:
            seen.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)

    optimizer.register_step_pre_hook(record)
    settings = {"start_lr": 1e-3, "end_lr": 1.0, "num_steps": 12, "auto_range": False}
    return lrrunner.range_test(None, model, optimizer, loader, loss_fn, **(settings | options)), seen


def unequal_items() -> Any:
    """Token-weighted losses on micro-batches of unequal sizes: the first step's gradient, loss and counts."""
    inputs, targets = regression_data()
    sizes = UNEQUAL_ITEMS[dist.get_rank()]
    first = sum(map(sum, UNEQUAL_ITEMS[: dist.get_rank()]))
    cuts = [first, first + sizes[0], first + sum(sizes)]
    loader = [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(cuts)]
    by_count = after_first_step(loader, lambda m, b: (squared_error(m, b), len(b[0])), accumulation_steps=2)
    by_size = after_first_step(loader, squared_error, accumulation_steps=2)
    return [(result.steps[0], result.global_batch_size, gradient) for result, gradient in (by_count, by_size)]


def uneven_lengths() -> list[float]:
    """Rank 0 has three batches, rank 1 five: both restart after three."""
    inputs, targets = regression_data()
    loader = [(inputs[i : i + 4], targets[i : i + 4]) for i in range(3 + 2 * dist.get_rank())]
    result, _ = after_first_step(loader, squared_error)
    return [step.loss for step in result.steps]


class Stream(IterableDataset[Any]):
    """A few samples, of a number that differs by rank."""

    def __iter__(self) -> Iterator[Any]:
        inputs, targets = regression_data()
        return iter(list(zip(inputs, targets, strict=True))[: 12 + 20 * dist.get_rank()])


def streams_of_unknown_length() -> list[float]:
    """Each rank restarts where its own dataset ends."""
    result, _ = after_first_step(DataLoader(Stream(), batch_size=4), squared_error)
    return [step.loss for step in result.steps]


def prepared_streams() -> list[list[float]]:
    """Losses with batches dispatched by rank 0, and with each rank reading its own."""
    found = []
    for dispatch in (True, False):
        accelerator = Accelerator(
            cpu=True,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch),
            rng_types=["torch", "generator"],
        )
        model = small_model()
        prepared = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), lr=1.0), DataLoader(Stream(), batch_size=4)
        )
        own, optimizer, loader = prepared
        result = lrrunner.range_test(
            accelerator, own, optimizer, loader, squared_error, end_lr=0.1, num_steps=12, auto_range=False
        )
        found.append([step.loss for step in result.steps])
        del model, prepared
        accelerator.free_memory()
    return found


def within_an_accumulation() -> list[Any]:
    """Gradients of a sweep at the first of two micro-batches, DDP's flag after it, and the modes of the module."""
    inputs, targets = regression_data()
    first = 4 * dist.get_rank()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    raw = small_model().eval()  # as Hugging Face gives models; DDP around it is in training mode
    modes: list[bool] = []
    raw.register_forward_pre_hook(lambda *_: modes.append(raw.training))
    model, optimizer = accelerator.prepare(raw, torch.optim.SGD(raw.parameters(), lr=1.0))
    seen: list[Any] = []

    def record(*_: Any) -> None:
        seen.append([p.grad.tolist() for p in raw.parameters() if p.grad is not None])

    optimizer.optimizer.register_step_pre_hook(record)
    with accelerator.accumulate(model):
        lrrunner.range_test(
            accelerator, model, optimizer, [(inputs[first : first + 4], targets[first : first + 4])], squared_error,
            num_steps=3, start_lr=1e-3, end_lr=1e-2, auto_range=False, accumulation_steps=1,
        )  # fmt: skip
        synchronises = model.require_backward_grad_sync
    accelerator.free_memory()
    return [seen, synchronises, [*modes, raw.training]]


def refusals() -> list[str]:
    """The first message of each refused call."""
    model, optimizer = plain_ddp()
    loader = [regression_data()]
    found = []
    inputs, targets = regression_data()
    shard = TensorDataset(inputs[: 96 - 24 * dist.get_rank()], targets[: 96 - 24 * dist.get_rank()])
    cases: tuple[tuple[nn.Module, dict[str, Any]], ...] = (
        (model, {"train_loader": DataLoader(shard, batch_size=4, sampler=DistributedSampler(shard))}),
        (model, {"train_loader": DataLoader(shard, batch_size=4)}),
        (small_model(), {}),
        (model, {"num_steps": 1 if dist.get_rank() else 10}),
        (model, {"num_steps": 12 if dist.get_rank() else 10}),
        (model, {"accumulation_steps": 2 if dist.get_rank() else None}),
        (model, {"start_lr": -1.0}),
    )
    for given, options in cases:
        own = optimizer if given is model else torch.optim.SGD(given.parameters(), lr=0.1)
        batches = options.pop("train_loader", loader)
        with pytest.raises(ValueError, match="wrong") as caught:
            lrrunner.range_test(None, given, own, batches, squared_error, **options)
        found.append(str(caught.value).splitlines()[1])
    return found


class Half(nn.Module):
    """Uses half of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = small_model(), small_model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.used(inputs)
        return found


def wrapped_wrongly() -> list[str]:
    """The messages for a static graph that is accumulated, and for unused parameters."""
    static = DistributedDataParallel(small_model(), static_graph=True)
    optimizer = torch.optim.SGD(static.parameters(), lr=1.0)
    loader = [regression_data()]
    with pytest.raises(ValueError, match="wrong") as refused:
        lrrunner.range_test(None, static, optimizer, loader, squared_error, accumulation_steps=2)
    half = DistributedDataParallel(Half())
    optimizer = torch.optim.SGD(half.parameters(), lr=1.0)
    with pytest.raises(RuntimeError, match="Expected to have finished reduction") as unused:
        lrrunner.range_test(None, half, optimizer, loader, squared_error)
    helped = DistributedDataParallel(Half(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(helped.parameters(), lr=1.0)
    result = lrrunner.range_test(None, helped, optimizer, loader, squared_error, num_steps=20, auto_range=False)
    return [str(refused.value), *unused.value.__notes__, str(result.stop.reason)]


def sharded(*, fsdp: bool) -> tuple[list[float], list[float]]:
    """Losses and norms of a sweep with accumulation, unequal counts and clipping; checks that shards are restored."""
    model = small_model()
    if fsdp:
        fully_shard(model)
    wrapped = model if fsdp else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    inputs, targets = regression_data()
    loader = [(inputs[i : i + 4], targets[i : i + 4]) for i in range(dist.get_rank(), 40, 2)]
    before = [local_part(p).tolist() for p in model.parameters()]
    result = lrrunner.range_test(
        None, wrapped, optimizer, loader, lambda m, b: (squared_error(m, b), 3 + dist.get_rank()), start_lr=1e-3,
        end_lr=0.1, num_steps=12, auto_range=False, accumulation_steps=2, max_grad_norm=0.5,
    )  # fmt: skip
    assert [local_part(p).tolist() for p in model.parameters()] == before
    return [step.loss for step in result.steps], [step.grad_norm for step in result.steps]


def sharded_on_half_of_the_ranks() -> str:
    """The message for a model that each rank shards by itself."""
    model = small_model()
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    fully_shard(model, mesh=DeviceMesh.from_group(groups[dist.get_rank()], "cpu"))
    with pytest.raises(ValueError, match="wrong") as caught:
        lrrunner.range_test(
            None, model, torch.optim.SGD(model.parameters(), lr=1.0), [regression_data()], squared_error
        )
    return str(caught.value)


def num_progress_bars() -> int:
    """How many progress bars a sweep of this rank creates."""
    from lrrunner.library import progress as library

    titles: list[str] = []
    original = vars(library)["progress_bar"]

    def counted(title: str, *, num_steps: int) -> Any:
        titles.append(title)
        return original(title, num_steps=num_steps)

    vars(library)["progress_bar"] = counted
    try:
        after_first_step([regression_data()], squared_error)
    finally:
        vars(library)["progress_bar"] = original
    return len(titles)


def every_case() -> dict[str, Any]:
    """The results of several checks in one world."""
    torch.set_num_threads(1)
    cases = {
        "unequal": unequal_items(),
        "lengths": uneven_lengths(),
        "streams": streams_of_unknown_length(),
        "prepared streams": prepared_streams(),
        "accumulation": within_an_accumulation(),
        "refusals": refusals(),
        "wrapped wrongly": wrapped_wrongly(),
        "sharded": [sharded(fsdp=fsdp) for fsdp in (False, True)],
        "half": sharded_on_half_of_the_ranks(),
        "num bars": num_progress_bars(),
        "undisturbed": trained(sweep_at=None),
        "disturbed": trained(sweep_at=3),
        "confirmed": trained(sweep_at=3, options=EVERYTHING),
    }
    cases["readme"] = [readme_training(with_sweep=with_sweep) for with_sweep in (False, True)]
    return cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results by rank."""
    return on_ranks(every_case, 2, tmp_path_factory.mktemp("library"))


def readme_example() -> tuple[str, str, str]:
    """The script in README.md: its setup, the range test, the training after it."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## In a script")[2]
    script = section.partition("```python\n")[2].partition("```")[0]
    setup, _, rest = script.partition("result = ")
    call, _, training = rest.partition("losses = ")
    return setup, f"result = {call}", f"losses = {training}"


def readme_training(*, with_sweep: bool) -> tuple[list[Any], float | None]:
    """State after the README's script with or without its range test, which here applies nothing."""
    setup, call, training = readme_example()
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(setup, scope)
    if with_sweep:
        exec("\n".join(line for line in call.splitlines() if "apply(" not in line), scope)
    exec(training, scope)
    scope["accelerator"].free_memory()
    lr = scope["result"].suggestion.lr if with_sweep else None
    return [[p.tolist() for p in scope["model"].parameters()], scope["losses"], torch.get_rng_state().tolist()], lr


def test_two_sweeps_in_the_middle_change_no_bit_of_a_training(cases: list[dict[str, Any]]) -> None:
    """Rows 15, 16, 17, 38: model, optimizer, schedule, RNG, order of the data, and what Accelerate counts."""
    for case in cases:
        assert case["disturbed"]["state"] == case["undisturbed"]["state"]
        assert case["confirmed"]["state"] == case["undisturbed"]["state"]
        for name in ("disturbed", "confirmed"):
            first, second = case[name]["losses"]
            assert len(first) > 20
            assert first == second


def test_unequal_items_give_the_step_of_one_process(cases: list[dict[str, Any]]) -> None:
    """Law 2, by the caller's count and by the size of the batch."""
    inputs, targets = regression_data()
    model = small_model()
    loss = squared_error(model, (inputs[:16], targets[:16]))
    loss.backward()
    for case in cases:
        for step, global_batch_size, gradient in case["unequal"]:
            assert step.loss == pytest.approx(loss.item(), rel=1e-12)
            assert (step.num_items, global_batch_size) == (16.0, 16)
            for ours, parameter in zip(gradient, model.parameters(), strict=True):
                torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-12)


def test_ranks_with_unequal_numbers_of_batches_stay_together(cases: list[dict[str, Any]]) -> None:
    """Row 26: the shortest loader decides where lengths are known; nothing communicates where they are not."""
    for name in ("lengths", "streams"):
        first, second = (case[name] for case in cases)
        assert first == second
        assert len(first) == 12
    dispatched, sharded = cases[0]["prepared streams"]
    assert [dispatched, sharded] == cases[1]["prepared streams"]
    assert (len(dispatched), len(sharded)) == (12, 12)


def test_a_model_that_fully_shard_has_sharded_is_swept_as_with_ddp(cases: list[dict[str, Any]]) -> None:
    """The gradient's norm is that of all shards; accumulation and unequal counts stay exact."""
    for case in cases:
        (losses, norms), (sharded_losses, sharded_norms) = case["sharded"]
        assert len(losses) == 12
        assert sharded_losses == pytest.approx(losses, rel=1e-9)
        assert sharded_norms == pytest.approx(norms, rel=1e-9)
        assert "model must be sharded by fully_shard(model) over all 2 ranks" in case["half"]


def test_only_rank_0_shows_progress(cases: list[dict[str, Any]]) -> None:
    """All ranks share one terminal; bars of other ranks would stay at zero in it."""
    assert [case["num bars"] for case in cases] == [1, 0]


def test_a_sweep_within_an_accumulation_keeps_ranks_together(cases: list[dict[str, Any]]) -> None:
    """There, Accelerate has switched off DDP's reduction: each rank would apply its own gradient."""
    (gradients, synchronises, modes), (others, *_) = (case["accumulation"] for case in cases)
    assert len(gradients) == 3
    assert gradients == others
    assert not synchronises
    assert modes == [True, True, True, False]


def test_all_ranks_refuse_an_error_of_one(cases: list[dict[str, Any]]) -> None:
    """A rank that continued would wait for ever."""
    for case in cases:
        split, shards, unwrapped, few, differing, resolved, negative = case["refusals"]
        assert "train_loader must read one data set on all ranks" in split
        assert "got 96 on rank 0, 72 on rank 1 samples; let every rank read the whole data set" in split
        assert "train_loader must give as many batches on every rank" in shards
        assert "model must be wrapped for 2 ranks, got Sequential" in unwrapped
        assert "num_steps must be at least 2, got 1; try 100 (on rank 1)" in few
        assert "num_steps must be the same on every rank, got 10 on rank 0, 12 on rank 1" in differing
        assert "accumulation_steps must be the same on every rank, got 1 on rank 0, 2 on rank 1" in resolved
        assert "  - start_lr must be above 0, got -1; try 1e-7" in negative


def test_wrappers_that_fail_later_are_named(cases: list[dict[str, Any]]) -> None:
    """DDP fails somewhere in its second step; the argument that helps does."""
    for case in cases:
        refused, note, stop = case["wrapped wrongly"]
        assert "model must be wrapped without static_graph for 2 accumulation steps (DDP fails on both), got" in refused
        assert "DistributedDataParallel(model, find_unused_parameters=True)" in note
        assert stop in ("diverged", "end_of_ladder")


def test_the_readmes_example_runs_on_one_and_two_ranks_and_changes_nothing(cases: list[dict[str, Any]]) -> None:
    """The first lines that a new user runs."""
    try:
        alone = [readme_training(with_sweep=with_sweep) for with_sweep in (False, True)]
    finally:
        forget_accelerate()
    for (without, _), (with_sweep, lr) in (alone, *(case["readme"] for case in cases)):
        assert with_sweep == without
        assert lr is not None
        assert 1e-4 < lr < 1


def test_the_readmes_example_applies_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines, in a directory that they may write to and leave empty: only `save` writes."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    try:
        for part in readme_example():
            exec(part, scope)
    finally:
        forget_accelerate()
    assert list(tmp_path.iterdir()) == []
    assert scope["optimizer"].param_groups[0]["lr"] == scope["result"].suggestion.lr
    assert len(scope["losses"]) == 16
