"""What a run has come to, on disk, so that another process can go on from there.

A checkpoint is one file. Rank 0 writes it beside its final name, brings it down to the disk and renames it: whatever
ends the process, the newest file is whole. The one before it is kept, for a disk that lies. Files are only ever read
with ``weights_only=True``, so that nothing in them is executed. Of a sharded model, each rank has written its shard
before that, in the same way, to ``<number>.rank<rank>`` in the same folder, which ranks on other machines must see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lrrunner.records import Step, Stop, Trial
from lrrunner.system.atomic_files import atomic_file, remove_partial_files
from lrrunner.system.plain_values import field_types, from_plain, to_plain
from lrrunner.training.collectives import Collective
from lrrunner.training.snapshot import RngState, Snapshot

FORMAT = 2
NUM_KEPT = 2
SHARDS = "*.rank*"

logger = logging.getLogger(__name__)


class Climbed(NamedTuple):
    """A ladder, or a repeat of one, that has ended."""

    steps: tuple[Step, ...]
    stop: Stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfinishedRepeat:
    """A ladder in the middle of which the state was saved, as one rank needs it.

    Attributes:
        steps: Its records so far, at least one.
        world: What all ranks have in common, or this rank's shard of it, from :meth:`Snapshot.portable`.
        buffers: This rank's buffers.
        rng: This rank's random number generators.
        reference_items: The count of items that losses are weighted by, where they are.
    """

    steps: tuple[Step, ...]
    world: dict[str, Any]
    buffers: list[Any]
    rng: dict[str, Any]
    reference_items: float | None

    def restore(self, snapshot: Snapshot, device: torch.device) -> torch.Tensor | None:
        """Put the state back into the model of ``snapshot``; returns the reference count on ``device``."""
        snapshot.adopt(self.world, self.buffers)
        snapshot.restore()
        RngState.from_portable(self.rng).restore(device)
        if self.reference_items is None:
            return None
        return torch.tensor(self.reference_items, dtype=torch.float64, device=device)


class Checkpoints:
    """Saves a run every so often, and knows what an earlier life of it has saved.

    Args:
        folder: Where rank 0 keeps the files.
        every_s: Seconds between two saves; 0 saves behind every step.
        collective: The world this rank belongs to.
        saved: What :func:`read_newest` found, the same on every rank; None for a run that begins.
    """

    def __init__(
        self, folder: Path, *, every_s: float, collective: Collective, saved: dict[str, Any] | None = None
    ) -> None:
        self._folder, self._every_s, self._collective = folder, every_s, collective
        self._finished: dict[str, Climbed] = {}
        self._trials: dict[int, Trial] = {}
        self._key: str | None = None
        self._saved: dict[str, Any] = {}
        self._number = 0
        self._is_broken = False
        if saved is not None:
            self._finished = {
                key: Climbed(tuple(_steps(steps)), from_plain(Stop, stop)) for key, steps, stop in saved["finished"]
            }
            self._trials = {row["trial"]: from_plain(Trial, row) for row in saved["trials"]}
            self._key, self._saved, self._number = saved["key"], saved, saved["number"]
        self._last = time.monotonic()

    def known_steps(self, prefix: str) -> list[Step]:
        """Records of an earlier life in order, of the ladders whose keys begin so; until the last ladder goes on."""
        known = [(key, list(climbed.steps)) for key, climbed in self._finished.items()]
        known += [(self._key, _steps(self._saved["steps"]))] if self._key is not None else []
        return [step for key, steps in known if key.startswith(prefix) for step in steps]

    def trial(self, number: int) -> Trial | None:
        """A confirmation run that has ended."""
        return self._trials.get(number)

    def finish_trial(self, trial: Trial) -> None:
        """A confirmation run has ended; the next save holds it."""
        self._trials[trial.trial] = trial

    def finished(self, key: str) -> Climbed | None:
        """A ladder that has ended."""
        return self._finished.get(key)

    def finish(self, key: str, steps: Iterable[Step], stop: Stop) -> None:
        """A ladder has ended; the next save holds it."""
        self._finished[key] = Climbed(tuple(steps), stop)

    def unfinished(self, key: str) -> UnfinishedRepeat | None:
        """The ladder in the middle of which the state was saved, once."""
        if key != self._key:
            return None
        saved, self._key = self._saved, None
        own = saved["ranks"][self._collective.rank]
        self._saved = {}
        return UnfinishedRepeat(steps=tuple(_steps(saved["steps"])), world=saved["world"], **own)

    def due(self) -> bool:
        """Whether this rank wants a save behind the current step."""
        return time.monotonic() - self._last >= self._every_s

    def save(
        self,
        key: str,
        steps: Sequence[Step],
        snapshot: Snapshot,
        *,
        rng: RngState,
        reference_items: torch.Tensor | None,
    ) -> None:
        """Save the state in the middle of a ladder. Every rank must call this, behind the same step.

        A state that cannot be saved, or a disk that is full, costs the checkpoint and a warning, not the run.
        """
        self._number += 1
        own = {
            "buffers": snapshot.portable_buffers(),
            "rng": rng.portable(),
            "reference_items": None if reference_items is None else float(reference_items),
        }
        trouble = self._write_shard(key, len(steps), snapshot) if snapshot.is_sharded else None
        by_rank = self._collective.gather((own, trouble))
        if self._collective.rank == 0 and not self._is_broken:
            content = {
                "format": FORMAT,
                "number": self._number,
                "world_size": self._collective.world_size,
                "finished": [(name, _rows(done.steps), to_plain(done.stop)) for name, done in self._finished.items()],
                "trials": [to_plain(trial) for trial in self._trials.values()],
                "key": key,
                "steps": _rows(steps),
                "ranks": [own for own, _ in by_rank],
            }
            try:
                for error in (error for _, error in by_rank if error is not None):
                    raise error
                content["world"] = None if snapshot.is_sharded else snapshot.portable()
                write(self._folder, self._number, content)
            except (TypeError, OSError) as error:
                _remove_number(self._folder, self._number)
                if isinstance(error, TypeError):
                    self._is_broken = True
                    logger.warning("the state cannot be saved, so this run cannot be resumed: %s", error)
                else:
                    logger.warning("the checkpoint could not be written (%s); the one before it stays", error)
        self._last = time.monotonic()

    def _write_shard(self, key: str, num_steps: int, snapshot: Snapshot) -> TypeError | OSError | None:
        """This rank's part of a checkpoint; an error is returned, since all ranks have to learn of it."""
        try:
            self._folder.mkdir(exist_ok=True)
            content = {"key": key, "num_steps": num_steps, "world": snapshot.portable()}
            _write_down(_shard_file(self._folder, self._number, self._collective.rank), content)
        except (TypeError, OSError) as error:
            return error
        return None


def write(folder: Path, number: int, content: dict[str, Any]) -> None:
    """Write one checkpoint down to the disk, then remove those that are too old."""
    folder.mkdir(exist_ok=True)
    _write_down(folder / f"{number:08d}.pt", content)
    for path in _files(folder)[NUM_KEPT:]:
        path.unlink(missing_ok=True)
    kept = {path.stem for path in _files(folder)}
    remove_partial_files(folder)
    for path in [shard for shard in folder.glob(SHARDS) if shard.stem not in kept]:
        path.unlink(missing_ok=True)


def _write_down(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path, durable=True) as file:
        torch.save(content, file)


def read_newest(folder: Path, *, collective: Collective) -> dict[str, Any] | None:
    """The newest checkpoint that every rank can read, with this rank's shard in it where the model is sharded.

    None where there is none. Every rank must call this; rank 0 reads what all have in common.
    """
    candidates = _readable(folder) if collective.rank == 0 else iter(())
    while True:
        content: dict[str, Any] | None = collective.broadcast(next(candidates, None))
        if content is None or content["world"] is not None:
            return content
        path = _shard_file(folder, content["number"], collective.rank)
        shard = _shard(path, content)
        troubles = [trouble for trouble in collective.gather(None if shard is not None else str(path)) if trouble]
        if not troubles:
            return content | {"world": shard}
        if collective.rank == 0:
            logger.warning("the checkpoint %s lacks %s", content["number"], ", ".join(troubles))


def _readable(folder: Path) -> Iterator[dict[str, Any]]:
    """The checkpoints that can be read, the newest first."""
    for path in _files(folder):
        content = _loaded(path)
        if content is None:
            continue
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            logger.warning("the checkpoint %s is none of format %s, which this version reads", path, FORMAT)
        else:
            yield content


def _shard(path: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """This rank's shard of a checkpoint; None where it cannot be read, or is that of another one."""
    shard = _loaded(path)
    if not isinstance(shard, dict) or (shard["key"], shard["num_steps"]) != (content["key"], len(content["steps"])):
        return None
    world: dict[str, Any] = shard["world"]
    return world


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch, zipfile and pickle raise what they like
        logger.warning("the checkpoint %s cannot be read (%s)", path, (str(error).splitlines() or ["?"])[0])
        return None


def _remove_number(folder: Path, number: int) -> None:
    """What ranks have written of a checkpoint that did not come about."""
    for path in folder.glob(f"{number:08d}.*"):
        path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """A run that has finished needs none."""
    remove_partial_files(folder)
    for path in [*_files(folder), *folder.glob(SHARDS)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it was never made, or somebody keeps something in it
        folder.rmdir()


def _files(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("*.pt"), reverse=True)


def _shard_file(folder: Path, number: int, rank: int) -> Path:
    return folder / f"{number:08d}.rank{rank}"


def _rows(steps: Iterable[Step]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(step, name) for name in field_types(Step)) for step in steps]


def _steps(rows: Iterable[Sequence[Any]]) -> list[Step]:
    return [Step(**dict(zip(field_types(Step), row, strict=True))) for row in rows]
