"""Files that are replaced as a whole: a reader sees the old content or the new one, never a part.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".part"
BLOCK_BYTES = 512
"""Unit of ``st_blocks``."""


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, and is removed when the block raises.

    Args:
        path: The file; its folder exists.
        durable: Flush content and name to the disk, so that they survive a power failure.
        private: Readable and writable by its owner alone (mode 0600).
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, durable: bool = False, private: bool = False) -> None:
    """Write a file as :func:`atomic_file` does."""
    with atomic_file(path, durable=durable, private=private) as file:
        file.write(content)


def write_text(path: Path, text: str, *, durable: bool = False, private: bool = False) -> None:
    """Write text in UTF-8 as :func:`atomic_file` does."""
    write_bytes(path, text.encode(), durable=durable, private=private)


def write_json(path: Path, content: Any, *, durable: bool = False, private: bool = False) -> None:
    """Write JSON, indented by two spaces, as :func:`atomic_file` does."""
    write_bytes(path, json_bytes(content), durable=durable, private=private)


def json_bytes(content: Any) -> bytes:
    """JSON as :func:`write_json` writes it."""
    return (json.dumps(content, indent=2) + "\n").encode()


def overwritten(path: Path, content: bytes) -> bool:
    """Write over a file, whose disk may be full; whether that was possible in the blocks that it has."""
    try:
        with path.open("r+b", buffering=0) as file:
            state = os.fstat(file.fileno())
            if len(content) > max(state.st_size, state.st_blocks * BLOCK_BYTES):
                return False
            file.write(content)
            file.truncate()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def is_partial(path: Path) -> bool:
    """Whether a file is what a process left that died while it wrote.

    >>> is_partial(Path(".status.json.0af1.part")), is_partial(Path("status.json"))
    (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that died have left; none may be writing to the folder."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
