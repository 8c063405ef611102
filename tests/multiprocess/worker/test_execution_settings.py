"""Wrappers, precision and accumulation as a command line asks for them, on two ranks of the real program."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrrunner.config.command_line import parse_command_line
from tests.composing import composed
from tests.multiprocess.ranks import on_ranks
from tests.multiprocess.worker.test_run_job import free_port

HERE = "tests.multiprocess.worker.test_execution_settings"


class Blocks(nn.Module):
    """A small network with a list of blocks, whose activations may be recomputed in the backward pass."""

    forwards = 0

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(self._through, block, x, use_reentrant=False) if self.recompute else self._through(block, x)
        return self.last(x)

    def _through(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            Blocks.forwards += 1
        return torch.tanh(block(x))


def below_zero(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss that is always negative, as log likelihoods of densities are."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) - 100.0


MODEL = ("model=custom", f"model._target_={HERE}.Blocks")

JOBS: Mapping[str, tuple[str, ...]] = {
    "ddp": MODEL,
    "fsdp": (*MODEL, "train.fsdp=true"),
    "gradient checkpointing": (*MODEL, "+model.recompute=true"),
    "accumulation, clipping": (*MODEL, "train.accumulation_steps=4", "train.max_grad_norm=0.5"),
    "fsdp, accumulation, clipping": (
        *(*MODEL, "train.fsdp=true", "train.accumulation_steps=4", "train.max_grad_norm=0.5"),
    ),
    "fsdp, validation, confirmation": (
        *(*MODEL, "train.fsdp=true", "sweep.monitor=val", "confirm.enabled=true", "confirm.budget_steps=20"),
    ),
    "negative loss": (*MODEL, "objective=custom", f"objective._target_={HERE}.below_zero", "+objective._partial_=true"),
}

REDUCED_JOBS: Mapping[str, tuple[str, ...]] = {
    "ddp, bf16, compiled": (*MODEL, "train.mixed_precision=bf16"),
    "fsdp, bf16, compiled": (*MODEL, "train.mixed_precision=bf16", "train.fsdp=true"),
}
"""The launcher sets the compiler's back end "eager", which traces like others but compiles nothing."""


def run_jobs(folder: str, port: int, jobs: Mapping[str, tuple[str, ...]], environ: Mapping[str, str]) -> dict[str, Any]:
    """Run the jobs one after another in one world; returns how each was trained on this rank."""
    from lrrunner.worker import run_job
    from lrrunner.worker.world import join_world, leave_world

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environ}
    os.chdir(folder)
    world = join_world()
    models, original = [], vars(run_job)["make_trainable"]

    def recorded(*arguments: Any) -> Any:
        trainable = original(*arguments)
        models.append(type(trainable.model).__name__)
        return trainable

    vars(run_job)["make_trainable"] = recorded

    def fail(cause: str) -> NoReturn:
        raise AssertionError(cause)

    found = {}
    for number, (name, overrides) in enumerate(jobs.items()):
        Blocks.forwards = 0
        settings = ("sweep.num_steps=20", "sweep.start_lr=1e-4", "sweep.auto_range=false", "tracking.enabled=false")
        config = composed(*settings, "data.global_batch_size=64", *overrides, world_size=2)
        config.run.dir = name
        code = run_job.run_job(
            world,
            run_job.JobRequest(
                config=config,
                command_line=parse_command_line(overrides),
                number=number,
                show_progress=lambda progress: None,
            ),
            orphaned=lambda: False,
            on_config_error=fail,
            on_failure=fail,
        )
        found[name] = {"code": code, "model": models[-1], "forwards": Blocks.forwards}
    leave_world()
    return found


class Finished:
    """The run directories of the jobs of a world, and what their ranks returned."""

    def __init__(self, folder: Path, ranks: list[dict[str, Any]]) -> None:
        self.folder, self.ranks = folder, ranks

    def records(self, job: str, column: str = "loss") -> list[float]:
        """A column of the job's records."""
        with (self.folder / job / "records.csv").open() as file:
            return [float(row[column]) for row in csv.DictReader(file)]

    def train(self, job: str) -> dict[str, Any]:
        """The section ``train`` of the job's resolved configuration."""
        return dict(yaml.safe_load((self.folder / job / "config.yaml").read_text())["train"])

    def by_rank(self, job: str, name: str) -> list[Any]:
        """A value that each rank returned for the job."""
        return [rank[job][name] for rank in self.ranks]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """All jobs in float32."""
    folder = tmp_path_factory.mktemp("settings")
    return Finished(folder, on_ranks(run_jobs, 2, folder, str(folder), free_port(), JOBS, {}, group=False))


def same_until_chaos(one: list[float], other: list[float]) -> None:
    """Compare the first twelve losses: float32 rounds differently, which shows after the minimum."""
    assert len(one) > 12
    assert one[:12] == pytest.approx(other[:12], rel=1e-4)
    assert one[11] < one[0] - 0.01


@pytest.mark.parametrize("job", JOBS)
def test_every_rank_sweeps_to_the_end_under_the_wrapper_asked_for(finished: Finished, job: str) -> None:
    """Accelerate's own FSDP switch trains with DDP on a CPU."""
    assert finished.by_rank(job, "code") == [0, 0]
    sharded = job.startswith("fsdp")
    assert finished.by_rank(job, "model") == ["FSDPBlocks" if sharded else "DistributedDataParallel"] * 2
    assert finished.train(job)["fsdp"] is sharded


def test_sharded_parameters_give_the_curve_of_copied_ones(finished: Finished) -> None:
    """To 1e-4, also accumulated and clipped."""
    same_until_chaos(finished.records("fsdp"), finished.records("ddp"))
    clipped = finished.records("accumulation, clipping")
    same_until_chaos(finished.records("fsdp, accumulation, clipping"), clipped)
    for column in ("grad_norm", "num_items"):
        one, other = (finished.records(job, column)[:12] for job in ("ddp", "fsdp"))
        assert one == pytest.approx(other, rel=1e-3)


def test_accumulated_steps_are_those_of_whole_batches(finished: Finished) -> None:
    """One LR, one record and the same samples a step; the norm before clipping is that of the whole gradient."""
    accumulated = finished.records("accumulation, clipping", "grad_norm")
    assert accumulated[0] == pytest.approx(finished.records("ddp", "grad_norm")[0], rel=1e-4)
    assert finished.records("accumulation, clipping", "num_items") == [64.0] * len(accumulated)


def test_recomputed_activations_change_nothing(finished: Finished) -> None:
    """Blocks run forward twice as often."""
    jobs = ("ddp", "gradient checkpointing")
    same_until_chaos(finished.records(jobs[1]), finished.records(jobs[0]))
    once, twice = (finished.by_rank(job, "forwards")[0] for job in jobs)
    steps = [len(finished.records(job)) for job in jobs]
    assert (once / steps[0], twice / steps[1]) == (2, 4)


def test_monitoring_the_validation_loss_changes_no_step(finished: Finished) -> None:
    """Confirmation runs follow as usual."""
    job = "fsdp, validation, confirmation"
    assert finished.records(job)[:12] == finished.records("fsdp")[:12]
    assert finished.records(job, "val_loss")[11] < finished.records(job, "val_loss")[0]
    assert (finished.folder / job / "trials.csv").exists()


def test_negative_losses_give_the_same_curve_a_hundred_lower(finished: Finished) -> None:
    """Row 5: rules that compare with a multiple of the best loss stop at once."""
    below = finished.records("negative loss")
    same_until_chaos([loss + 100 for loss in below], finished.records("ddp"))
    assert max(below[:12]) < -90


def test_bf16_and_the_compiler_sweep_alike_under_both_wrappers(tmp_path: Path) -> None:
    """Autocast is the same under both: parameters are gathered as they are."""
    environ = {"ACCELERATE_DYNAMO_BACKEND": "EAGER"}
    ranks = on_ranks(run_jobs, 2, tmp_path, str(tmp_path), free_port(), REDUCED_JOBS, environ, group=False)
    found = Finished(tmp_path, ranks)
    copied, sharded = (found.records(job) for job in REDUCED_JOBS)
    assert sharded[:8] == pytest.approx(copied[:8], rel=1e-3)
    for job in REDUCED_JOBS:
        assert found.by_rank(job, "code") == [0, 0]
        assert found.by_rank(job, "model") == ["OptimizedModule"] * 2
        assert (found.train(job)["mixed_precision"], found.train(job)["compile"]) == ("bf16", True)
        assert min(found.records(job)) < found.records(job)[0] - 0.1
