"""Triton's interpreter as numpy >= 2.4 needs it. Importing this is enough; where there is a GPU it does nothing."""

from __future__ import annotations

from typing import Any

import torch

if not torch.cuda.is_available():
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_numbers(tensor: Any, scope: Any) -> None:
        """triton 3.6 makes loop bounds by int(array of one number), which numpy refuses since 2.4."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_numbers
