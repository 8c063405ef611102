"""A job loads only what it uses: half of the time of a short sweep would go into importing the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.launching import environment

UNUSED = (
    "mlflow",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo.eval_frame",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)
"""``torch._dynamo`` itself is a stand-in (``lrrunner.worker.deferred_dynamo``), whose submodules are not loaded."""

PROGRAM = f"""
import atexit, sys
from lrrunner.cli.main import main

atexit.register(lambda: print("loaded:", *[name for name in {UNUSED} if name in sys.modules]))
main()
"""


def test_the_default_job_without_tracking_loads_no_compiler_no_fsdp_and_no_mlflow(tmp_path: Path) -> None:
    """Together they take three of six CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "tracking.enabled=false", "sweep.num_steps=20", "run.dir=run"],
        cwd=tmp_path,
        env=environment(ACCELERATE_USE_CPU="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "suggestion.json").exists()
    assert done.stdout.splitlines()[-1] == "loaded:"
