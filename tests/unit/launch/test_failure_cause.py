"""Which rank failed first: read from what launchers and ranks leave."""

from __future__ import annotations

from lrrunner.launch.failure_cause import hung_rank, innermost_frame, primary_cause, reported_causes, root_cause
from lrrunner.launch.mailbox import RankOutcome

LAUNCHER_OUTPUT = """
lrrunner.worker.warm_rank FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_03:31:36
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 101)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_03:31:35
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 102)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 102
"""

STACK = """Thread 0x00007f0000000001 (most recent call first):
  File "/site/lrrunner/signals.py", line 107 in _watch
  File "/lib/threading.py", line 982 in run

Current thread 0x00007f0000000002 (most recent call first):
  File "/home/ann/mine.py", line 12 in forward
  File "/site/torch/nn/modules/module.py", line 1775 in _call_impl
"""


def test_the_launchers_root_cause_is_read() -> None:
    """Its other failures do not count: a survivor fails too, a moment later."""
    assert root_cause(LAUNCHER_OUTPUT) == (1, -9)
    assert root_cause("Traceback (most recent call last):") is None


def test_a_killed_rank_came_before_one_that_ended_for_want_of_it() -> None:
    """Both may be seen in one look of the launcher, which then lists the lower rank first."""
    together = LAUNCHER_OUTPUT.replace("rank      : 0 (local_rank: 0)", "rank      : 2 (local_rank: 2)")
    together = together.replace("exitcode  : 1 (", "exitcode  : -9 (").replace(
        "exitcode  : -9 (pid: 102)", "exitcode  : 1 ("
    )
    assert root_cause(together) == (2, -9)


def test_the_position_of_a_rank_is_that_of_its_main_thread() -> None:
    """It comes last, after the threads that watch."""
    assert innermost_frame(STACK) == ", at /home/ann/mine.py:12 in forward"
    assert innermost_frame("") == ""


def test_the_first_cause_of_their_own_counts() -> None:
    """A rank whose peer is gone reports that first, while the peer still writes its traceback."""
    outcomes = [
        RankOutcome(rank=0, exit_code=1, cause="rank 0: another rank is gone, its connection was lost (x)"),
        RankOutcome(rank=1, exit_code=1, cause="rank 1: ValueError: y"),
        RankOutcome(rank=2, exit_code=0),
    ]
    causes = reported_causes(outcomes)
    assert len(causes) == 2
    assert primary_cause(causes) == "rank 1: ValueError: y"
    assert primary_cause(causes[:1]) is None


def test_the_rank_that_does_not_wait_is_the_one_that_hangs() -> None:
    """The others wait for it in a collective."""
    waiting = 'Current thread 0x1:\n  File "/torch/distributed_c10d.py", line 9 in all_reduce\n'
    assert hung_rank({0: waiting, 1: STACK}, "no step") == "rank 1: no step, at /home/ann/mine.py:12 in forward"
    assert hung_rank({0: waiting}, "no step") == "no step on any rank; see ranks/*.out for the stack of each one"
