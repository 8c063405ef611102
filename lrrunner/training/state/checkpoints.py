"""The state of a run on disk, so that another process can continue it.

A checkpoint is one file that rank 0 writes and flushes to the disk before it gets its final name: whatever ends the
process, the newest file is complete. The one before it is kept in case a disk loses data. Files are only ever read with
``weights_only=True``, so that nothing in them is executed. With a sharded model, each rank first writes its shard in
the same way, to ``<number>.rank<rank>`` in the same folder, which ranks on other machines must see.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lrrunner.records import Step, Stop, Trial
from lrrunner.system.atomic_files import atomic_file, remove_partial_files
from lrrunner.system.plain_values import field_types, from_plain, to_plain
from lrrunner.training.collectives import Collective
from lrrunner.training.state.snapshot import RngState, Snapshot

FORMAT = 2
NUM_KEPT = 2
SHARDS = "*.rank*"

CANNOT_BE_SAVED = (TypeError, AttributeError, pickle.PicklingError)
"""What pickle raises for a state that no file can hold; trying again is of no use."""

CANNOT_BE_WRITTEN = (OSError, RuntimeError)
"""What a disk raises; where it fails in the middle of a file, torch raises a RuntimeError of its own."""

logger = logging.getLogger(__name__)


class FinishedRepeat(NamedTuple):
    """A repeat of a sweep that has ended."""

    steps: tuple[Step, ...]
    stop: Stop


@dataclass(frozen=True, kw_only=True)
class UnfinishedRepeat:
    """A repeat in the middle of which the state was saved, as one rank needs it.

    Attributes:
        steps: Its records so far, at least one.
        world: What is the same on all ranks, or this rank's shard of it, from :meth:`Snapshot.state_dict`.
        buffers: This rank's buffers, from :meth:`Snapshot.buffers_state`.
        rng: State of this rank's random number generators.
        reference_items: Item count that losses are weighted by; None if they are not.
    """

    steps: tuple[Step, ...]
    world: dict[str, Any]
    buffers: list[Any]
    rng: dict[str, Any]
    reference_items: float | None

    def restore(self, snapshot: Snapshot, device: torch.device) -> float | None:
        """Load the state into the model of ``snapshot``; returns the reference count."""
        snapshot.load_state_dict(self.world, self.buffers)
        snapshot.restore()
        RngState.from_state_dict(self.rng).restore(device)
        return self.reference_items


class Checkpoints:
    """Saves the state of a run every so often, and holds what a previous attempt has saved.

    Args:
        folder: Where rank 0 keeps the files.
        every_s: Seconds between two saves; 0 saves after every step.
        collective: The world this rank belongs to.
        saved: What :func:`read_newest` found, the same on every rank; None for a new run.
    """

    def __init__(
        self, folder: Path, *, every_s: float, collective: Collective, saved: dict[str, Any] | None = None
    ) -> None:
        self._folder, self._every_s, self._collective = folder, every_s, collective
        self._finished: dict[str, FinishedRepeat] = {}
        self._trials: dict[int, Trial] = {}
        self._unfinished_key: str | None = None
        self._saved: dict[str, Any] = {}
        self._number = 0
        self._is_broken = self._is_failing = False
        if saved is not None:
            self._finished = {
                key: FinishedRepeat(tuple(_steps(rows)), from_plain(Stop, stop))
                for key, rows, stop in saved["finished"]
            }
            self._trials = {row["trial"]: from_plain(Trial, row) for row in saved["trials"]}
            self._unfinished_key, self._saved, self._number = saved["key"], saved, saved["number"]
        self._last = time.monotonic()

    def known_steps(self, prefix: str) -> list[Step]:
        """Records of a previous attempt, in order, of repeats whose keys begin so; until the unfinished one resumes."""
        known = [(key, list(finished.steps)) for key, finished in self._finished.items()]
        known += [(self._unfinished_key, _steps(self._saved["steps"]))] if self._unfinished_key is not None else []
        return [step for key, steps in known if key.startswith(prefix) for step in steps]

    def trial(self, number: int) -> Trial | None:
        """A confirmation run that has ended; None if it has not."""
        return self._trials.get(number)

    def finish_trial(self, trial: Trial) -> None:
        """Hold a confirmation run that has ended; the next save contains it."""
        self._trials[trial.trial] = trial

    def finished(self, key: str) -> FinishedRepeat | None:
        """A repeat that has ended; None if it has not."""
        return self._finished.get(key)

    def finish(self, key: str, steps: Iterable[Step], stop: Stop) -> None:
        """Hold a repeat that has ended; the next save contains it."""
        self._finished[key] = FinishedRepeat(tuple(steps), stop)

    def unfinished(self, key: str) -> UnfinishedRepeat | None:
        """The repeat in the middle of which the state was saved; returned once, and None for other keys."""
        if key != self._unfinished_key:
            return None
        saved, self._saved, self._unfinished_key = self._saved, {}, None
        own = saved["ranks"][self._collective.rank]
        return UnfinishedRepeat(steps=tuple(_steps(saved["steps"])), world=saved["world"], **own)

    def due(self) -> bool:
        """Whether this rank wants to save after the current step."""
        return time.monotonic() - self._last >= self._every_s

    def save(
        self,
        key: str,
        steps: Sequence[Step],
        snapshot: Snapshot,
        *,
        rng: RngState,
        reference_items: float | None,
    ) -> None:
        """Save the state in the middle of a repeat. Every rank must call this, after the same step.

        If the state cannot be saved, or the disk is full, a warning is logged once and the run goes on.
        """
        self._number += 1
        own = {
            "buffers": snapshot.buffers_state(),
            "rng": rng.state_dict(),
            "reference_items": reference_items,
        }
        error = self._write_shard(key, len(steps), snapshot) if snapshot.is_sharded else None
        by_rank = self._collective.gather((own, error))
        if self._collective.rank == 0 and not self._is_broken:
            content = self._content(key, steps, [own for own, _ in by_rank])
            self._write(content, snapshot, errors=[error for _, error in by_rank if error is not None])
        self._last = time.monotonic()

    def _content(self, key: str, steps: Sequence[Step], by_rank: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "number": self._number,
            "world_size": self._collective.world_size,
            "finished": [(name, _rows(done.steps), to_plain(done.stop)) for name, done in self._finished.items()],
            "trials": [to_plain(trial) for trial in self._trials.values()],
            "key": key,
            "steps": _rows(steps),
            "ranks": by_rank,
        }

    def _write(self, content: dict[str, Any], snapshot: Snapshot, *, errors: Sequence[Exception]) -> None:
        """Rank 0's part of a checkpoint, unless a rank could not write its shard."""
        try:
            for error in errors:
                raise error
            content["world"] = None if snapshot.is_sharded else snapshot.state_dict()
            write(self._folder, self._number, content)
        except CANNOT_BE_SAVED as error:
            self._is_broken = True
            _remove_number(self._folder, self._number)
            logger.warning("the state cannot be saved, so this run cannot be resumed: %s", error)
        except CANNOT_BE_WRITTEN as error:
            _remove_number(self._folder, self._number)
            if not self._is_failing:
                logger.warning("the checkpoint could not be written (%s); the one before it stays", _first_line(error))
            self._is_failing = True
        else:
            if self._is_failing:
                logger.warning("checkpoints are written again")
            self._is_failing = False

    def _write_shard(self, key: str, num_steps: int, snapshot: Snapshot) -> Exception | None:
        """This rank's part of a checkpoint; an error is returned, since all ranks must know of it."""
        try:
            self._folder.mkdir(exist_ok=True)
            content = {"key": key, "num_steps": num_steps, "world": snapshot.state_dict()}
            _write_durably(_shard_file(self._folder, self._number, self._collective.rank), content)
        except (*CANNOT_BE_SAVED, *CANNOT_BE_WRITTEN) as error:
            return error
        return None


def write(folder: Path, number: int, content: dict[str, Any]) -> None:
    """Write a checkpoint to the disk, then remove those that are too old."""
    folder.mkdir(exist_ok=True)
    _write_durably(folder / f"{number:08d}.pt", content)
    for path in _files(folder)[NUM_KEPT:]:
        path.unlink(missing_ok=True)
    kept = {path.stem for path in _files(folder)}
    remove_partial_files(folder)
    for path in [shard for shard in folder.glob(SHARDS) if shard.stem not in kept]:
        path.unlink(missing_ok=True)


def _write_durably(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path, durable=True) as file:
        torch.save(content, file)


def read_newest(folder: Path, *, collective: Collective) -> dict[str, Any] | None:
    """The newest checkpoint that every rank can read, with this rank's shard if the model is sharded.

    None if there is none. Every rank must call this; rank 0 reads what is the same on all ranks.
    """
    candidates = _readable(folder) if collective.rank == 0 else iter(())
    while True:
        content: dict[str, Any] | None = collective.broadcast(next(candidates, None))
        if content is None or content["world"] is not None:
            return content
        path = _shard_file(folder, content["number"], collective.rank)
        shard = _shard(path, content)
        missing = [name for name in collective.gather(None if shard is not None else str(path)) if name]
        if not missing:
            return content | {"world": shard}
        if collective.rank == 0:
            logger.warning("the checkpoint %s lacks %s", content["number"], ", ".join(missing))


def _readable(folder: Path) -> Iterator[dict[str, Any]]:
    """The checkpoints that can be read, newest first."""
    for path in _files(folder):
        content = _loaded(path)
        if content is None:
            continue
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            logger.warning("the checkpoint %s is none of format %s, which this version reads", path, FORMAT)
        else:
            yield content


def _shard(path: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """This rank's shard of a checkpoint; None if it cannot be read, or belongs to another checkpoint."""
    shard = _loaded(path)
    if not isinstance(shard, dict) or (shard["key"], shard["num_steps"]) != (content["key"], len(content["steps"])):
        return None
    world: dict[str, Any] = shard["world"]
    return world


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - on a damaged file, torch, zipfile and pickle raise various exceptions
        logger.warning("the checkpoint %s cannot be read (%s)", path, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _remove_number(folder: Path, number: int) -> None:
    """Remove what ranks have written of a checkpoint that failed."""
    for path in folder.glob(f"{number:08d}.*"):
        with contextlib.suppress(OSError):  # the disk may be what has failed
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove all checkpoints, which a finished run does not need."""
    remove_partial_files(folder)
    for path in [*_files(folder), *folder.glob(SHARDS)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it does not exist, or other files are in it
        folder.rmdir()


def _files(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("*.pt"), reverse=True)


def _shard_file(folder: Path, number: int, rank: int) -> Path:
    return folder / f"{number:08d}.rank{rank}"


def _rows(steps: Iterable[Step]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(step, name) for name in field_types(Step)) for step in steps]


def _steps(rows: Iterable[Sequence[Any]]) -> list[Step]:
    return [Step(**dict(zip(field_types(Step), row, strict=True))) for row in rows]
