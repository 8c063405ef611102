"""What ends a call after its sweep; the result so far comes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrrunner.library.result import RangeTest

WHERE = "what was found before is in the attribute result of this exception (in a notebook, sys.last_value.result)"


class ConfirmationInterrupted(KeyboardInterrupt):
    """Ctrl-C ended the confirmation runs. Like any KeyboardInterrupt, it ends a script that does not catch it.

    Attributes:
        result: The result of the sweep, and of the runs that had ended.
    """

    def __init__(self, result: RangeTest) -> None:
        super().__init__(f"the confirmation runs were interrupted; {WHERE}")
        self.result = result


class ConfirmationError(RuntimeError):
    """A confirmation run failed on one of several ranks.

    Attributes:
        result: The result of the sweep alone.
    """

    def __init__(self, cause: Exception, result: RangeTest) -> None:
        super().__init__(f"a confirmation run failed with {type(cause).__name__}: {cause}; {WHERE}")
        self.result = result
