"""Without a GPU the kernels run under Triton's interpreter, which tests/conftest.py asks for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, whose interpreter runs kernels on CPUs: pip install triton")
import interpreted  # noqa: F401


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
