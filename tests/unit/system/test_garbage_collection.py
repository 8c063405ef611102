"""Imports are kept from the collector, what a job creates is not."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Iterator

import pytest

from lrrunner.system.garbage_collection import collection_paused, exempt_from_collection


class Node:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """Nothing stays exempt after a test."""
    yield
    gc.unfreeze()


def test_collection_is_paused_for_a_block_only() -> None:
    """Also when an import fails, and within another pause: a process that never collects would run out of memory."""
    with collection_paused():
        with pytest.raises(ImportError), collection_paused():
            importlib.import_module("lrrunner.missing")
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_pause_leaves_a_collector_off_that_was_off() -> None:
    """A user who disables the collector has a reason."""
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_later_objects_are_collected() -> None:
    """Cycles made after the exemption are freed: a job's model and DDP are such."""
    gc.collect()
    earlier = weakref.ref(Node())
    exempt_from_collection()
    later = weakref.ref(Node())
    gc.collect()
    assert earlier() is not None
    assert later() is None
