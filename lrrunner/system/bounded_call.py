"""Calls that nobody waits for longer than a limit. Standard library only."""

from __future__ import annotations

import threading
from collections.abc import Callable


def done_within(timeout_s: float, call: Callable[[], object]) -> bool:
    """Run a call in a thread that ends with the process, for one that is about to end.

    Returns:
        Whether it has returned within the limit; else it goes on.
    """
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()
