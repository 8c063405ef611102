"""Variables that a launcher has left behind."""

from __future__ import annotations

import pytest

from lrrunner.worker.world import environment_error


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE must come with RANK, MASTER_ADDR, MASTER_PORT, as a launcher sets them"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE must come with MASTER_ADDR, as"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number of ranks, got two; unset it"),
    ],
)
def test_a_variable_left_in_the_environment_is_named(environ: dict[str, str], message: str) -> None:
    """It was a traceback of Accelerate's about multinode."""
    assert environment_error(environ).startswith(message)


def test_a_launchers_own_variables_and_none_are_fine() -> None:
    """One rank needs nobody to find."""
    assert environment_error({}) == ""
    assert environment_error({"WORLD_SIZE": "1"}) == ""
    assert environment_error({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == ""
