"""Tests marked gpu are skipped where there is none."""

from __future__ import annotations

import pytest
import torch

REASON = "needs a GPU; scripts/gpu_check runs it where there is one"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Also those of other folders, should they carry the mark."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # the keyword is also the name of this folder
            item.add_marker(pytest.mark.skip(reason=REASON))
