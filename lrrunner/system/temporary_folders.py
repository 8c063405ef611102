"""Folders for what processes of one user exchange on one machine, in TMPDIR. Standard library only.

TMPDIR is shared: everything of a user is in one folder that only he can enter, so that nobody else can place anything
there. A folder belongs to the process that made it, and is removed by a later one once that is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from lrrunner.system.atomic_files import read_json, write_json
from lrrunner.system.processes.process_identity import is_gone, process_identity

OWNER_FILE = "owner.json"

NUM_ATTEMPTS = 10

UNOWNED_AFTER_S = 24 * 3600.0
"""A folder whose owner is not known for so long lost its maker before that could be written."""


def new_private_folder(prefix: str) -> Path:
    """A new folder that only this user can enter, owned by this process."""
    for attempt in range(NUM_ATTEMPTS):
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_users_folder()))
            break
        except FileNotFoundError:  # another process has just removed the user's folder, which was empty
            if attempt == NUM_ATTEMPTS - 1:
                raise
    write_owner(folder)
    return folder


def remove_private_folder(folder: Path) -> None:
    """Remove a folder, and the user's own if that is empty now."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.name.startswith(_name()):
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def remove_multiprocessing_folder() -> None:
    """Remove the folder that data loaders' workers have met in; only for a process that ends without cleaning up.

    It must have been started by its own command: a child of ``multiprocessing`` shares its parent's folder.
    """
    folder = getattr(multiprocessing.current_process(), "_config", {}).get("tempdir")
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def write_owner(folder: Path) -> None:
    """Record that a folder is this process's."""
    write_json(folder / OWNER_FILE, {"process": process_identity()}, private=True)


def remove_stale_folders() -> None:
    """Remove the folders of this user's processes that have ended without removing them: they may hold secrets."""
    for parent in Path(tempfile.gettempdir()).glob(f"{_name()}*"):
        if _is_own(parent):
            for folder in list(parent.iterdir()):
                if _is_own(folder) and _is_stale(folder):
                    remove_private_folder(folder)


def _users_folder() -> Path:
    """This user's folder; one with another name if somebody else has taken that name."""
    folder = Path(tempfile.gettempdir()) / _name()
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_own(folder):
            return Path(tempfile.mkdtemp(prefix=f"{_name()}-"))
    folder.chmod(0o700)
    return folder


def _name() -> str:
    return f"lrrunner-{os.getuid()}"


def _is_own(folder: Path) -> bool:
    """Whether this is a folder, no link to one, that this user has made."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _is_stale(folder: Path) -> bool:
    owner = read_json(folder / OWNER_FILE)
    if owner is None:
        return time.time() - folder.lstat().st_mtime > UNOWNED_AFTER_S
    return is_gone(owner.get("process"))
