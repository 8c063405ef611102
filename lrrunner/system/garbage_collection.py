"""Python's collector of reference cycles, kept away from what imports create.

Importing torch and MLflow creates half a million objects that live as long as the process. The collector walks over
all of them while they are imported, in each later full collection, and at exit: together a third of the CPU time of a
short job.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause automatic collections for the duration of imports, which create hardly any garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exempt_from_collection() -> None:
    """Exempt all objects of the moment from later collections; only for a process of lrrunner's own.

    Call it after the imports of a process, before a job creates anything that has to be freed, or at the end.
    """
    gc.freeze()
