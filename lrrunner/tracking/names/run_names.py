"""Names of runs: what is swept and, once there is one, its LR, so that the runs table answers by itself."""

from __future__ import annotations

import re

from lrrunner.config.schema import Config, target_name
from lrrunner.tracking.names import tag_names

_LR_SUFFIX = re.compile(r" lr=\S+$")


def default_run_name(job: Config) -> str:
    """Model, optimizer and global batch size of a job, ``Mlp-AdamW-b64`` for example."""
    return f"{target_name(job.model)}-{target_name(job.optimizer)}-b{job.data.global_batch_size}"


def short_labels(job: Config) -> dict[str, str]:
    """What the runs table is sorted and filtered by: tag or param -> value."""
    return {
        tag_names.MODEL: target_name(job.model),
        tag_names.OPTIMIZER: target_name(job.optimizer),
        tag_names.GLOBAL_BATCH_SIZE: str(job.data.global_batch_size),
    }


def name_with_lr(name: str, lr: float | None) -> str:
    """A run's name with its suggested LR, in place of that of an earlier result.

    >>> name_with_lr("Mlp-AdamW-b64 lr=1.0e-02", 3.1e-3)
    'Mlp-AdamW-b64 lr=3.1e-03'
    """
    plain = _LR_SUFFIX.sub("", name)
    return f"{plain} lr=none" if lr is None else f"{plain} lr={lr:.1e}"
