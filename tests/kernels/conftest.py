"""Without a GPU the kernels run under Triton's interpreter, which tests/conftest.py asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, whose interpreter runs kernels on CPUs: pip install triton")

if not torch.cuda.is_available():
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_numbers(tensor: Any, scope: Any) -> None:
        """triton 3.6 makes loop bounds by int(array of one number), which numpy refuses since 2.4."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_numbers


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
