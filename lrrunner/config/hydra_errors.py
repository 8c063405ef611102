"""Hydra's own reporting of errors, turned off. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FULL_ERROR_VARIABLE = "HYDRA_FULL_ERROR"


@contextmanager
def hydra_errors_raised() -> Iterator[None]:
    """Have Hydra raise its errors, instead of printing a traceback and ending the process with code 1."""
    own = os.environ.get(FULL_ERROR_VARIABLE)
    os.environ[FULL_ERROR_VARIABLE] = "1"
    try:
        yield
    finally:
        if own is None:
            del os.environ[FULL_ERROR_VARIABLE]
        else:
            os.environ[FULL_ERROR_VARIABLE] = own
