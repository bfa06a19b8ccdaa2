"""On a GPU: what NVML says of this process's devices is what it makes them do."""

from __future__ import annotations

import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from hpc.batch import gpus


def test_a_busy_gpu_is_seen() -> None:
    a_XX = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    look = gpus.watch()
    look(True)
    until = time.monotonic() + 3 * gpus.EVERY
    while time.monotonic() < until:
        a_XX @ a_XX
        torch.cuda.synchronize()
    told = look()
    assert told["busy"] / told["seconds"] > 0.5 and told["bytes"] >= a_XX.nbytes
    assert told["joules"] / told["seconds"] > 50, "watts"
