"""Devices of this machine."""

from __future__ import annotations

from lrrunner.system.devices import visible_gpus


def test_gpus_are_those_that_the_user_shows() -> None:
    """An empty list hides them all."""
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}) == ("GPU-a", "GPU-b")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
