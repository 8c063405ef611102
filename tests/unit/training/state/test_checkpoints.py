"""A checkpoint restores a sweep at the very step after which it was saved."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrrunner.records import Step, StopReason, Trial, TrialOutcome
from lrrunner.system import atomic_files
from lrrunner.training.collectives import SerialCollective
from lrrunner.training.engine import SweepResult, run_sweep
from lrrunner.training.state import checkpoints
from lrrunner.training.state.checkpoints import Checkpoints, read_newest
from lrrunner.training.state.snapshot import RngState, Snapshot
from lrrunner.training.step import train_step
from tests.multiprocess.sweeps import planned_batches, rank_context, squared_error, sweep_plan, trainable


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run is executed after it."""


def saver(folder: Path, *, every_s: float = 0.0) -> Checkpoints:
    return Checkpoints(
        folder, every_s=every_s, collective=SerialCollective(), saved=read_newest(folder, collective=SerialCollective())
    )


def swept(folder: Path | None, *, die_at: int = -1, part: Any = None, **changes: Any) -> SweepResult:
    """Sweep twice; dies when so many steps are recorded."""
    count = 0

    def on_step(step: Step) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed

    return run_sweep(
        part or trainable(),
        sweep_plan(**{"num_steps": 20, "repeats": 2} | changes),
        planned_batches(),
        context=rank_context(checkpoints=None if folder is None else saver(folder)),
        on_step=on_step,
    )


def without_times(result: SweepResult) -> list[str]:
    """Every digit as text, since NaN is not equal to itself."""
    return [repr(dataclasses.replace(step, elapsed_s=0.0, timestamp_ms=0)) for step in result.steps] + [
        repr(result.stops)
    ]


@pytest.mark.parametrize("die_at", [1, 2, 19, 20, 21, 22, 33])
def test_a_resumed_sweep_has_the_records_of_an_uninterrupted_one(die_at: int, tmp_path: Path) -> None:
    """At any step of either repeat, also before the first save."""
    with pytest.raises(Killed):
        swept(tmp_path, die_at=die_at)
    assert without_times(swept(tmp_path)) == without_times(swept(None))


@pytest.mark.parametrize("die_at", [2, 5, 12])
def test_a_sweep_that_is_read_late_is_saved_after_the_step_that_runs(
    die_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has taken a step more than was read; its record must not be lost, nor the step repeated."""
    monkeypatch.setattr(train_step, "reads_late", lambda *args, **kwargs: True)
    with pytest.raises(Killed):
        swept(tmp_path, die_at=die_at)
    assert without_times(swept(tmp_path)) == without_times(swept(None))


@pytest.mark.parametrize("late", [False, True])
def test_a_stop_saves_though_no_save_is_due(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who stops a run wants to continue it there later."""
    monkeypatch.setattr(train_step, "reads_late", lambda *args, **kwargs: late)
    calls: list[int] = []

    def stop_requested() -> bool:
        calls.append(0)
        return len(calls) > 6

    part = trainable()
    first = run_sweep(
        part,
        sweep_plan(num_steps=20),
        planned_batches(),
        context=rank_context(stop_requested=stop_requested, checkpoints=saver(tmp_path, every_s=1e5)),
    )
    assert first.stops[0].reason == StopReason.INTERRUPTED
    saved = saver(tmp_path)
    assert saved.known_steps("sweep/0/") == list(first.steps)
    assert without_times(swept(tmp_path, repeats=1)) == without_times(swept(None, repeats=1))


def test_a_stop_at_the_step_that_diverges_ends_the_sweep_when_it_is_resumed(tmp_path: Path) -> None:
    """The stop rule still applies to the step after which the run was interrupted."""
    whole = swept(None, repeats=1, num_steps=40, end_lr=1e3)
    (stop,) = whole.stops
    assert stop.reason == StopReason.DIVERGED
    count = 0

    def stop_requested() -> bool:
        nonlocal count
        count += 1
        return count == stop.step + 1

    first = run_sweep(
        trainable(),
        sweep_plan(num_steps=40, end_lr=1e3),
        planned_batches(),
        context=rank_context(stop_requested=stop_requested, checkpoints=saver(tmp_path, every_s=1e5)),
    )
    assert first.stops[0].reason == StopReason.INTERRUPTED
    assert without_times(swept(tmp_path, repeats=1, num_steps=40, end_lr=1e3)) == without_times(whole)


def test_skipped_steps_count_in_the_data_and_not_in_the_schedule(tmp_path: Path) -> None:
    """An overflowed fp16 step is tried again and has used a batch; the scale continues from where it was."""

    class Overflowing(torch.amp.GradScaler):
        """Overflows in every fourth step that it has counted down to."""

        def __init__(self) -> None:
            super().__init__("cpu", init_scale=8.0, growth_interval=1000)

        def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self.overflows = int(self.get_scale()) == 8
            return None if self.overflows else optimizer.step()

        def update(self, new_scale: Any = None) -> None:
            super().update(self.get_scale() / 2 if self.overflows else self.get_scale() * 2)

        def unscale_(self, optimizer: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.div_(self.get_scale())

    with pytest.raises(Killed):
        swept(tmp_path, die_at=11, part=trainable(scaler=Overflowing()))
    result = swept(tmp_path, part=trainable(scaler=Overflowing()))
    whole = swept(None, part=trainable(scaler=Overflowing()))
    assert any(step.skipped for step in whole.steps)
    assert without_times(result) == without_times(whole)


def test_weights_of_unequal_counts_keep_the_reference_of_the_repeat(tmp_path: Path) -> None:
    """It is agreed once a repeat; another reference would round differently."""

    def objective(model: Any, batch: Any) -> Any:
        return squared_error(model, batch), 7

    with pytest.raises(Killed):
        swept(tmp_path, die_at=9, part=trainable(objective=objective))
    content = read_newest(tmp_path, collective=SerialCollective())
    assert content is not None
    assert content["ranks"][0]["reference_items"] == 7.0
    result = swept(tmp_path, part=trainable(objective=objective))
    assert without_times(result) == without_times(swept(None, part=trainable(objective=objective)))


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk may lose data; the run then repeats a few steps."""
    with pytest.raises(Killed):
        swept(tmp_path, die_at=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000007.pt", "00000008.pt"]
    newest = tmp_path / "00000008.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    (tmp_path / ".00000009.pt.0af1.part").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert without_times(swept(tmp_path)) == without_times(swept(None))
    assert "00000008.pt cannot be read" in caplog.text


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    """Write access to a run directory must not run code in the next job."""
    torch.save({"format": 1, "code": Path}, tmp_path / "00000001.pt")
    assert read_newest(tmp_path, collective=SerialCollective()) is None


def test_nothing_is_saved_when_it_is_not_due(tmp_path: Path) -> None:
    """Nor is the model copied."""
    run_sweep(
        trainable(),
        sweep_plan(num_steps=5),
        planned_batches(),
        context=rank_context(checkpoints=saver(tmp_path / "none", every_s=1e5)),
    )
    assert not (tmp_path / "none").exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The records are what matters."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert without_times(swept(tmp_path)) == without_times(swept(None))
    assert "the checkpoint could not be written" in caplog.text


class FullDisk:
    """A file whose disk takes so many more bytes."""

    def __init__(self, file: Any, *, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(28, "No space left on device")
        written: int = self._file.write(content)
        return written


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_checkpoint_that_fails_half_way_costs_itself_alone(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch raises a RuntimeError then, which ended the sweep; the one before stays, and a disk may have room again."""
    numbers: list[int] = []
    kept: list[set[str]] = []

    @contextlib.contextmanager
    def atomic_file(path: Path, *, durable: bool) -> Iterator[Any]:
        numbers.append(int(path.stem))
        with atomic_files.atomic_file(path, durable=durable) as file:
            yield FullDisk(file, room=room) if 4 <= numbers[-1] <= 6 else file

    def on_step(step: Step) -> None:
        kept.append({path.name for path in tmp_path.iterdir()} if tmp_path.exists() else set())

    monkeypatch.setattr(checkpoints, "atomic_file", atomic_file)
    with caplog.at_level(logging.WARNING):
        result = run_sweep(
            trainable(),
            sweep_plan(num_steps=10),
            planned_batches(),
            context=rank_context(checkpoints=saver(tmp_path)),
            on_step=on_step,
        )
    assert len(result.steps) == 10
    assert caplog.text.count("the checkpoint could not be written (") == 1
    assert caplog.text.count("checkpoints are written again") == 1
    assert {"00000002.pt", "00000003.pt"} in kept
    assert not [names for names in kept if any(name.endswith(".part") for name in names)]
    assert max(numbers) > 6


def test_an_optimizer_whose_state_cannot_be_saved_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read safely is not written; the run goes on."""

    class Strange(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            for group in self.param_groups:
                group["note"] = Path("strange")

    part = trainable(optimizer=lambda p: Strange(p, lr=0.1))
    swept(tmp_path, part=part)
    assert caplog.text.count("this run cannot be resumed: pathlib.PosixPath is neither") == 1


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam])
def test_state_dictionaries_restore_everything(optimizer: Any, tmp_path: Path) -> None:
    """Through a file, into a model that was trained further."""
    part = trainable(optimizer=lambda p: optimizer(p, lr=0.1))
    part.model.register_buffer("count", torch.tensor([3.5]))
    run_steps(part, 3)
    snapshot = Snapshot(part.model, part.optimizer)
    torch.save((snapshot.state_dict(), snapshot.buffers_state()), tmp_path / "x")
    expected = copy.deepcopy((part.model.state_dict(), part.optimizer.state_dict()))
    run_steps(part, 2)
    part.model.get_buffer("count").fill_(0.0)
    state, buffers = torch.load(tmp_path / "x", weights_only=True)
    other = Snapshot(part.model, part.optimizer)
    other.load_state_dict(state, buffers)
    other.restore()
    assert str(expected) == str((part.model.state_dict(), part.optimizer.state_dict()))


def run_steps(part: Any, count: int) -> None:
    batches: Iterator[Any] = planned_batches()(0)
    for _ in range(count):
        part.optimizer.zero_grad()
        squared_error(part.model, next(batches)).backward()
        part.optimizer.step()


def test_random_numbers_continue_through_a_file(tmp_path: Path) -> None:
    """Python's, numpy's and torch's, in the middle of a pair of normal ones."""
    random.gauss(0, 1)
    np.random.standard_normal()
    torch.save(RngState.capture(torch.device("cpu")).state_dict(), tmp_path / "x")

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.rand(()).item()

    expected = draw()
    RngState.from_state_dict(torch.load(tmp_path / "x", weights_only=True)).restore(torch.device("cpu"))
    assert draw() == expected


def test_finished_trials_are_restored(tmp_path: Path) -> None:
    """A confirmation run that has ended is not run again."""
    trial = Trial(trial=0, lr=0.1, num_steps=5, num_steps_run=5, loss=float("inf"), outcome=TrialOutcome.DIVERGED)
    first = saver(tmp_path)
    first.finish_trial(trial)
    part = trainable()
    step = Step(step=0, lr=1.0, loss=2.0)
    rng = RngState.capture(torch.device("cpu"))
    first.save("trial_1/0/0", [step], Snapshot(part.model, part.optimizer), rng=rng, reference_items=None)
    second = saver(tmp_path)
    assert second.trial(0) == trial
    assert second.trial(1) is None
    assert repr(second.known_steps("trial_1/")) == repr([step])
