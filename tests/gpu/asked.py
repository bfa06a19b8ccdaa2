"""Whether a file of tests for GPUs runs here: on a GPU, as a script, or on a CPU with HPC_TEST_ON_CPU=1."""

from __future__ import annotations

import os

import pytest
import torch


def skip_without_gpu(name: str) -> None:
    """name: the file's __name__."""
    if name != "__main__" and not torch.cuda.is_available() and not os.environ.get("HPC_TEST_ON_CPU"):
        pytest.skip("no GPU; HPC_TEST_ON_CPU=1 runs these tests on a CPU", allow_module_level=True)
