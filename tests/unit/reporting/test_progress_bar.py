"""The bar of a script or a notebook."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from lrrunner.records import Step
from lrrunner.reporting.progress_bar import progress_bar, show


def kernel(config: dict[str, object]) -> ModuleType:
    """IPython with a shell of this configuration."""
    module = ModuleType("IPython")
    module.get_ipython = lambda: SimpleNamespace(config=config)  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("config", "is_shown"), [(None, False), ({"TerminalIPythonApp": {}}, False), ({"IPKernelApp": {}}, True)]
)
def test_a_bar_is_shown_in_notebooks_and_not_in_logs(
    config: dict[str, object] | None, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error of a notebook is no terminal; that of a batch job would fill a file."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    if config is not None:
        monkeypatch.setitem(sys.modules, "IPython", kernel(config))
    bar = progress_bar("LR sweep", num_steps=2)
    bar.mininterval = 0
    show(bar, Step(step=0, lr=1e-3, loss=2.0, smoothed_loss=2.0))
    show(bar, Step(step=1, lr=2e-3, loss=2.0, smoothed_loss=2.0, skipped=True))
    assert bar.n == (1 if is_shown else 0)
    bar.close()
    assert ("LR sweep" in stream.getvalue()) == is_shown
