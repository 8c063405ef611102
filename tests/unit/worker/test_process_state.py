"""A job that spoils the process does not spoil the next job of a warm rank."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

from lrrunner.worker.process_state import process_state_preserved


def settings() -> dict[str, Any]:
    """Everything that the test spoils, as it stands."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.enabled,
        "draws": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "errors": np.geterr(),
        "filters": list(warnings.filters),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "logging": (logging.root.level, logging.root.manager.disable),
        "loggers": (logging.getLogger("lrrunner.spoiled").level, logging.getLogger("lrrunner.spoiled").disabled),
        "umask": umask(),
        "denormal": float(torch.full((1,), 5e-324, dtype=torch.float64, device="cpu") * 1.0) == 0,
        "hooks": [len(torch.nn.modules.module._global_forward_hooks), len(_global_optimizer_pre_hooks)],
    }


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def spoil(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(3)
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.backends.cudnn.enabled = not torch.backends.cudnn.enabled
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    sys.path.insert(0, "/nowhere")
    os.environ["SPOILED"] = "1"
    os.environ.pop("PATH")
    os.chdir(folder)
    gc.disable()
    gc.set_threshold(1, 1, 1)
    logging.root.setLevel(logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    logging.getLogger("lrrunner.spoiled").setLevel(logging.CRITICAL)
    logging.getLogger("lrrunner.spoiled").disabled = True
    os.umask(umask() ^ 0o027)
    torch.set_flush_denormal(True)
    torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: None)


def test_every_setting_is_as_before_also_after_an_exception(tmp_path: Path) -> None:
    """set_default_dtype(float64) in one job changed all later jobs on these ranks, silently."""
    before = settings()
    with pytest.raises(RuntimeError, match="boom"), process_state_preserved():  # noqa: PT012
        spoil(tmp_path)
        changed = settings()
        raise RuntimeError("boom")
    assert {name for name in before if before[name] == changed[name]} == set(), "the test must spoil all of them"
    assert settings() == before


def test_a_setting_that_cannot_be_read_any_more_does_not_keep_the_others_from_being_restored(tmp_path: Path) -> None:
    """A job that has removed its working directory; torch's flags raise where two ways of setting them are mixed."""
    before = Path.cwd()
    gone = tmp_path / "gone"
    gone.mkdir()
    with process_state_preserved():
        os.chdir(gone)
        gone.rmdir()
        os.environ["SPOILED"] = "1"
    assert Path.cwd() == before
    assert "SPOILED" not in os.environ
