"""Output that nobody reads costs only the output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrrunner.system.output.output_streams import ForgivingStream

PRINTING = """
import os, sys
from lrrunner.system.output.output_streams import forgive_closed_output
forgive_closed_output()
for number in range(5000):
    print("a line of output", number)
    print("a line of errors", number, file=sys.stderr)
sys.stdout.flush()
with open("kept", "w") as file:
    print("whole", file=file)
os.write(1, b"")
sys.exit(7)
"""


@pytest.mark.parametrize("redirection", ["| head -1", ">&-", "2>&-", "> /dev/full", ">&- 2>&- <&-", "2>&1 | head -1"])
def test_a_process_ends_as_if_its_output_were_read(redirection: str, tmp_path: Path) -> None:
    """Its exit code is its own, and no file gets what was meant for a closed stream."""
    (tmp_path / "program.py").write_text(PRINTING)
    command = f"set -o pipefail; {sys.executable} program.py {redirection}"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 7, done.stderr[-1000:]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "kept").read_text() == "whole\n"


def test_the_stream_is_otherwise_the_one_it_stands_for(tmp_path: Path) -> None:
    """Libraries ask for its encoding, its descriptor, and whether it is a terminal."""
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        stream = ForgivingStream(file)
        print("kept", file=stream, flush=True)
        assert (stream.encoding, stream.fileno(), stream.isatty()) == ("utf-8", file.fileno(), False)
    assert (tmp_path / "out").read_text() == "kept\n"
    assert stream.write("discarded") == len("discarded")
