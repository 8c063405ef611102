"""Optimizers and DDP work without torch's compiler, and compiling works as if it had been loaded."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import torch
from torch import nn
from lrrunner.worker.deferred_dynamo import defer_dynamo, is_dynamo_loaded

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
defer_dynamo()
model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
print(is_dynamo_loaded(), "torch._dynamo.eval_frame" in sys.modules, "torch.distributed.fsdp" in sys.modules)
compiled = torch.compile(model, backend="eager")
print(is_dynamo_loaded(), type(compiled).__name__, bool((compiled(torch.ones(2, 3)) == model(torch.ones(2, 3))).all()))
optimizer.zero_grad()
optimizer.step()
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer", "torch's default is another one now"
print(torch._dynamo is sys.modules["torch._dynamo"], torch._dynamo.__file__.endswith("__init__.py"))
plain = torch.optim.Optimizer.zero_grad.__wrapped__
print(vars(plain)["__dynamo_disable"] is plain)
del model, compiled, optimizer
torch.distributed.destroy_process_group()
"""


def test_steps_do_not_load_the_compiler_and_compiling_does() -> None:
    """A second of each start; once something is compiled, torch protects its own functions as it always does."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    before, compiling, identity, unprotected = done.stdout.splitlines()
    assert before == "False False False"
    assert compiling == "True OptimizedModule True"
    assert identity == "True True"
    assert unprotected == "False"


OWN_DISABLE = """
import torch
from lrrunner.worker.deferred_dynamo import defer_dynamo, is_dynamo_loaded

defer_dynamo()
import torch._dynamo.config
print(is_dynamo_loaded(), torch._dynamo.config is torch._dynamo.config, torch._dynamo.disable(len) is not len)
"""


def test_other_uses_of_the_module_get_the_real_one() -> None:
    """A model that keeps a part of itself from the compiler must find it kept when it is compiled later."""
    done = subprocess.run([sys.executable, "-c", OWN_DISABLE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "True"]
