"""The cause of a failure in one line, and whether another rank is to blame."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrrunner.launch.mailbox import ANOTHER_RANK_IS_GONE, ANOTHER_RANK_IS_SILENT
from lrrunner.system.output.redaction import Redactor
from lrrunner.tasks.models import Mlp
from lrrunner.worker.failure_text import MAX_LENGTH, failure_text


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("[gloo] Connection closed by peer [127.0.0.1]:1234", ANOTHER_RANK_IS_GONE),
        ("[gloo] Timed out waiting 1800000ms for recv operation to complete", ANOTHER_RANK_IS_SILENT),
        ("Watchdog caught collective operation timeout: WorkNCCL", ANOTHER_RANK_IS_SILENT),
    ],
)
def test_errors_of_collectives_blame_another_rank(message: str, cause: str) -> None:
    """The supervisor looks for the rank that failed first."""
    assert failure_text(RuntimeError(message)).startswith(cause)


def test_the_own_error_of_a_rank_is_its_type_and_message_in_one_short_line() -> None:
    """Causes go into status.json, tags and the last line of the terminal."""
    assert failure_text(KeyError("x")) == "KeyError: 'x'"
    assert failure_text(OSError("Broken\npipe")) == "OSError: Broken pipe"
    assert len(failure_text(ValueError("x " * 1000))) <= MAX_LENGTH + len("ValueError: ")


def test_a_secret_across_the_end_of_a_long_message_is_masked() -> None:
    """Cut first, half of it would stay: no redactor recognises half a secret."""
    message = "x" * (MAX_LENGTH - 10) + " hunter2hunter2hunter2"
    text = failure_text(ValueError(message), masked=Redactor(["hunter2hunter2hunter2"]).text)
    assert text == f"ValueError: {'x' * (MAX_LENGTH - 10)} ***"


@pytest.mark.parametrize(
    ("loss", "hint"),
    [
        (lambda x: nn.functional.cross_entropy(x, torch.rand(4)), "the loss needs class indices: convert the target"),
        (lambda x: nn.functional.nll_loss(x, torch.rand(4)), "the loss needs class indices: convert the target"),
        (
            lambda x: nn.functional.binary_cross_entropy(x.sigmoid(), x.gt(0).long()),
            "the loss needs a floating-point target: convert it",
        ),
        (
            lambda x: nn.functional.binary_cross_entropy_with_logits(x, x.gt(0).long()),
            "the loss needs a floating-point target: convert it",
        ),
    ],
)
def test_a_target_of_the_wrong_dtype_names_what_to_convert(loss: Any, hint: str) -> None:
    """As the installed torch words it, which differs from version to version."""
    with pytest.raises(RuntimeError) as caught:
        loss(torch.zeros(4, 3))
    assert failure_text(caught.value).partition("; ")[2].startswith(hint)


def test_the_position_is_the_users_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of torch say where it noticed; what to mend is in the model."""
    (tmp_path / "my_model_of_a_test.py").write_text(
        "import torch\n\n\ndef forward(x):\n    return torch.nn.functional.linear(x, torch.ones(2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    forward = importlib.import_module("my_model_of_a_test").forward
    with pytest.raises(RuntimeError) as caught:
        forward(torch.ones(1, 2))
    assert failure_text(caught.value).endswith(", at my_model_of_a_test.py:5 in forward")
    quoted = f'File "{tmp_path}/my_model_of_a_test.py", line 7, in item'
    in_a_worker = RuntimeError(f"Caught it.\nOriginal Traceback (most recent call last):\n  {quoted}\nKeyError: 3\n")
    assert (
        failure_text(in_a_worker) == "in a worker of the data loader: KeyError: 3, at my_model_of_a_test.py:7 in item"
    )
    hinted = failure_text(RuntimeError(f"expected scalar type Long but found Float\n{quoted}"))
    assert hinted.partition(", at my_model_of_a_test.py:7 in item; ")[2].startswith("the loss needs class indices")


def test_shapes_that_do_not_fit_lead_to_what_to_compare() -> None:
    """In torch's own modules there is no line of the user's to name."""
    text = failure_text(RuntimeError("The size of tensor a (10) must match the size of tensor b (64) at dimension 1"))
    assert text.endswith("; compare the shapes of data.train's inputs and target with what model and loss expect")


def test_lines_of_this_package_are_not_the_users() -> None:
    """Nobody mends a model by editing lrrunner."""
    with pytest.raises(RuntimeError) as caught:
        Mlp(in_features=4, hidden_features=4, num_hidden=1, num_classes=2)(torch.ones(1, 5))
    error = caught.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this file, which is a user's
    assert " at " not in failure_text(error)
