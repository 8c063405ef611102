"""Processes forked from a server that has imported torch, Accelerate, Hydra and MLflow: 0.1 s each instead of 2 to 5 s.

The server has only imported: it has run nothing, holds no process group and no threads of Python's, so that each forked
process is as fresh as a started one. What only a started process shows (which modules it loads, how it ends) is tested
on real ones.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = (
    "accelerate",
    "lrrunner.cli.main",
    "lrrunner.reporting.sweep_figure",
    "lrrunner.worker.run_job",
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "pytest",
    "torch._dynamo",
    "torch.distributed.fsdp",
)


def fork_context() -> ForkServerContext:
    """A multiprocessing context; its server starts with the first process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context
