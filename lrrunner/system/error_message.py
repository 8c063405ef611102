"""The message of an exception that somebody else's code has raised. Standard library only."""

from __future__ import annotations


def error_message(error: BaseException) -> str:
    """As ``str(error)``, also for an exception whose ``__str__`` raises one.

    >>> error_message(ValueError("too large"))
    'too large'
    """
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - whatever it raises, the first failure is what counts
        return f"(its message cannot be shown: {type(second).__name__})"
