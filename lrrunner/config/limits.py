"""Upper limits: of counts in a configuration, of paths, and of what is typed. No torch.

A value beyond them would fill the memory, hang, or fail deep inside of a library, long after it could be reported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from lrrunner.errors import ConfigError

MAX_OVERRIDE_LENGTH = 10_000
MAX_POINTS = 10_000
"""Jobs of one batch."""

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
"""What file systems take."""

MAX_LR = 1e30
MIN_LR = 1e-30
"""Within float32, in which parameters are updated, also after the range of a sweep has been widened."""

MAX_COUNTS = {
    "sweep.num_steps": 1_000_000,
    "sweep.repeats": 1_000,
    "sweep.seed": 2**63 - 1,
    "sweep.val_batches": 1_000_000,
    "confirm.budget_steps": 1_000_000_000,
    "train.accumulation_steps": 1_000_000,
    "data.global_batch_size": 1_000_000_000,
    "data.dataloader.num_workers": 1_000,
    "data.dataloader.prefetch_factor": 1_000_000,
    "launch.num_processes": 65_536,
    "launch.concurrent": 1_000,
}


def count_errors(prefix: str, section: object) -> Iterator[str]:
    """Errors of the counts of one section that are too large.

    Args:
        prefix: Dotted name of the section, with a dot at its end.
        section: The section.
    """
    for key, most in MAX_COUNTS.items():
        name = key.removeprefix(prefix)
        value = getattr(section, name, None) if key.startswith(prefix) else None
        if value is not None and value > most:
            yield f"{key} must be at most {most}, got {value}; lower it"


def lr_errors(key: str, lr: float) -> Iterator[str]:
    """Errors of an LR that 32-bit floating-point numbers cannot apply."""
    if lr > 0 and not MIN_LR <= lr <= MAX_LR:
        yield f"{key} must lie between {MIN_LR:g} and {MAX_LR:g}, got {float_text(lr)}; the default range is 1e-7 to 10"


def float_text(number: float) -> str:
    """A number in a message; a whole number of hundreds of digits by its size.

    >>> float_text(0.5), float_text(10**400)
    ('0.5', 'a number of 401 digits')
    """
    try:
        return f"{number:g}"
    except OverflowError:
        return f"a number of {len(str(abs(number)))} digits"


def path_errors(key: str, path: str | None) -> Iterator[str]:
    """Errors of a path that no file system takes; asking for such a file would raise."""
    if path is None:
        return
    encoded = os.fsencode(path)
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) >= MAX_PATH_BYTES or longest > MAX_NAME_BYTES or b"\0" in encoded:
        yield (
            f"{key} must be a path below {MAX_PATH_BYTES} bytes, with names of at most {MAX_NAME_BYTES}, got "
            f"{len(encoded)} bytes and a name of {longest}; choose a shorter one"
        )
    elif path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:
            yield f"{key} must begin with the home directory of a user of this machine, got {path}; correct the name"


def check_lengths(overrides: Sequence[str]) -> None:
    """Refuse overrides that Hydra's parser would take minutes for.

    Raises:
        ConfigError: one is too long.
    """
    errors = [
        f"an override must have at most {MAX_OVERRIDE_LENGTH} characters, got {len(override)} after "
        f"{override[:40]!r}; put long values into a file of --config-dir"
        for override in overrides
        if len(override) > MAX_OVERRIDE_LENGTH
    ]
    if errors:
        raise ConfigError(errors)


def check_grid_size(parsed: Sequence[Override]) -> None:
    """Refuse a grid that could not be listed.

    Raises:
        ConfigError: it has too many points, or an endless range.
    """
    num_points = math.prod(map(_num_values, parsed))
    if num_points > MAX_POINTS:
        shown = f"{num_points:.0f}" if math.isfinite(num_points) else "more"
        raise ConfigError([f"the grid must have at most {MAX_POINTS} points, got {shown}; shorten its lists or ranges"])


def _num_values(override: Override) -> float:
    """How many values an override has in a grid; infinity for a range that does not end."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep) or value.start is None or value.stop is None:
        return 1
    try:
        count = (value.stop - value.start) / value.step
    except ArithmeticError:
        return math.inf
    return math.inf if math.isnan(count) else max(1.0, math.ceil(count) if math.isfinite(count) else count)
