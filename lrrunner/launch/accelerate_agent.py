"""``accelerate launch`` for a worker group: it ends with its parent, and uses the group's own cores."""

from __future__ import annotations

import os

from lrrunner.launch.mailbox import JobMailbox, remove_mailbox_when_orphaned
from lrrunner.system.devices import keep_to_cores
from lrrunner.system.garbage_collection import collection_paused, exempt_from_collection
from lrrunner.system.processes.parent_process import die_with_parent, orphan_check


def main() -> None:
    """Become ``accelerate launch``; when the supervisor is gone, its mailbox is removed."""
    mailbox, orphaned = JobMailbox.of_this_rank(), orphan_check()
    remove_mailbox_when_orphaned(mailbox, orphaned)
    die_with_parent()
    keep_to_cores(os.environ)
    with collection_paused():
        from accelerate.commands.launch import main as accelerate_launch
    try:
        accelerate_launch()
    finally:
        if orphaned():
            mailbox.remove()
        exempt_from_collection()


if __name__ == "__main__":
    main()
