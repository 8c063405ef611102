"""Which directory takes a batch, and that only one process works in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrrunner.batch.directory import batch_directory, batch_lock, exclusive_batch, is_batch
from lrrunner.batch.state import update_state
from lrrunner.errors import ConfigError
from tests.composing import composed


def test_an_empty_directory_takes_a_batch_and_that_of_a_batch_is_resumed_only_when_asked(tmp_path: Path) -> None:
    """Nothing that was recorded is overwritten."""
    run = composed(f"run.dir={tmp_path}").run
    (tmp_path / ".lock").touch()
    assert batch_directory(run) == tmp_path
    assert not is_batch(tmp_path)
    update_state(tmp_path, lrrunner="0")
    assert is_batch(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.dir must not hold a batch yet, got .*; go on with run.resume="):
        batch_directory(run)
    assert batch_directory(composed(f"run.resume={tmp_path}").run) == tmp_path


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    """The summary and the jobs would mix with them."""
    (tmp_path / "sets").mkdir()
    with pytest.raises(ConfigError, match=r"run\.dir must be new or empty for a batch, got .* with sets in it"):
        batch_directory(composed(f"run.dir={tmp_path}").run)


def test_a_batch_in_a_directory_that_is_in_use_names_the_next_move(tmp_path: Path) -> None:
    """Two commands with one run.dir: the second one names the key to change, and how to resume later."""
    with (
        batch_lock(tmp_path),
        pytest.raises(ConfigError) as caught,
        exclusive_batch(tmp_path, composed(f"run.dir={tmp_path}").run),
    ):
        pass
    assert caught.value.errors == (
        f"run.dir must name a directory where no batch is running, got {tmp_path}; wait for its end, "
        f"then go on with run.resume={tmp_path}",
    )
