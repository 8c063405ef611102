"""Which rank failed first, and why: read from outcomes, the launcher's output and stacks. Pure."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Mapping, Sequence

from lrrunner.launch.mailbox import SECONDARY_CAUSES, RankOutcome
from lrrunner.results.run_state import COULD_NOT_REPORT
from lrrunner.system import exit_codes

WAITING_FRAMES = ("in _engine_run_backward", "distributed_c10d.py")
"""Frames of a rank that waits for the others: in DDP's backward, in a collective of ours."""

_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)
_FAILURE = re.compile(r"rank\s*:\s*(\d+) \(local_rank.*?exitcode\s*:\s*(-?\d+)", re.DOTALL)
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')


def reported_causes(outcomes: Sequence[RankOutcome]) -> list[str]:
    """Causes that ranks have reported, in the order of their reports."""
    return [outcome.cause for outcome in outcomes if outcome.cause and outcome.exit_code == exit_codes.FAILED]


def primary_cause(causes: Sequence[str]) -> str | None:
    """The first cause that is not another rank's failure."""
    return next((cause for cause in causes if not any(text in cause for text in SECONDARY_CAUSES)), None)


def root_cause(launcher_output: str) -> tuple[int, int] | None:
    """Rank and exit code of the first failure that torch's launcher has seen.

    It looks a few times a second. A rank that was killed and another one that ended because of that may then be seen
    together, in the order of their ranks. Nothing that another rank does kills a rank, so that it came first.
    """
    found = _ROOT_CAUSE.search(launcher_output)
    if found is None:
        return None
    first = int(found[1]), int(found[2])
    killed = [rank for rank, exit_code in _failures(launcher_output) if exit_code == -signal.SIGKILL]
    return (killed[0], -signal.SIGKILL) if killed and first[1] >= 0 else first


def describe_exit(rank: int, exit_code: int) -> str:
    """The cause for a rank that has ended without reporting one.

    >>> describe_exit(1, -9), describe_exit(0, 3)
    ('rank 1: killed by SIGKILL', 'rank 0: ended with exit code 3 without reporting a cause')
    """
    if exit_code < 0:
        return f"rank {rank}: killed by {_signal_name(-exit_code)}"
    if exit_code == exit_codes.UNREPORTED:
        return f"rank {rank}: {COULD_NOT_REPORT} to {tempfile.gettempdir()}; free some space there"
    return f"rank {rank}: ended with exit code {exit_code} without reporting a cause"


def describe_disappearance(rank: int, launcher_output: str) -> str:
    """The cause for a rank whose process is gone before its job was over, with what the launcher has seen of it.

    Without an error, the launcher reports nothing: ``os._exit(0)`` in the user's code, say.
    """
    seen = dict(_failures(launcher_output))
    return describe_exit(rank, seen.get(rank, exit_codes.OK))


def describe_launcher(exit_code: int) -> str:
    """The cause for ranks whose launcher was killed.

    >>> describe_launcher(-9)
    'the launcher of the ranks: killed by SIGKILL'
    """
    return f"the launcher of the ranks: killed by {_signal_name(-exit_code)}"


def hung_rank(stacks: Mapping[int, str], symptom: str) -> str:
    """The cause for a worker group that makes no progress: the first rank that does not wait for others.

    Args:
        stacks: faulthandler's output of each rank.
        symptom: What was noticed, such as "no step for 20 s".
    """
    for rank, stack in sorted(stacks.items()):
        if not any(frame in stack for frame in WAITING_FRAMES):
            return f"rank {rank}: {symptom}{innermost_frame(stack)}"
    return f"{symptom} on any rank; see ranks/*.out for the stack of each one"


def innermost_frame(stack: str) -> str:
    """The innermost frame of the main thread, which faulthandler prints last; empty where there is none."""
    threads = re.split(r"^(?=(?:Current thread|Thread) )", stack, flags=re.MULTILINE)
    frame = _FRAME.search(threads[-1]) if threads else None
    return "" if frame is None else f", at {frame[1]}:{frame[2]} in {frame[3]}"


def _failures(launcher_output: str) -> list[tuple[int, int]]:
    """Ranks and exit codes of all failures that torch's launcher has seen."""
    return [(int(rank), int(exit_code)) for rank, exit_code in _FAILURE.findall(launcher_output)]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
