"""On a GPU: what NVML says of this process's devices is what it makes them do."""

from __future__ import annotations

import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from hpc.batch import gpus


def test_a_busy_gpu_is_seen() -> None:
    """At least so busy: NVML tells of the whole GPU, so that others on it add to what is told. Many products wait for
    the GPU at a time: one by one, its share fell to 0.46 where other processes took the CPU between two."""
    a_XX = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    look = gpus.watch()
    look(True)
    until = time.monotonic() + 3 * gpus.EVERY
    while time.monotonic() < until:
        for _ in range(100):  # a fifth of a second
            a_XX @ a_XX
        torch.cuda.synchronize()
    told = look()
    assert told["busy"] / told["seconds"] > 0.5 and told["bytes"] >= a_XX.nbytes
    assert told["joules"] / told["seconds"] > 50, "watts"
