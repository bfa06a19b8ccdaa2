"""Triton's interpreter (3.6 to 3.9) put right where it differs from GPUs. Importing this is enough; with a GPU it does
nothing.

Loop bounds are made by int(array of one number), which numpy refuses since 2.4. A condition on a number that meets one
on a block is made a block of int32, which 3.9 refuses as a mask. From fp32 to bf16 bits are cut off, and to e4m3 a
carry into the exponent is lost: torch rounds both as GPUs do, to the nearest, to even ones from the middle.
"""

from __future__ import annotations

from typing import Any

import torch

if not torch.cuda.is_available():
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    patch, convert = interpreter._patch_lang_tensor, interpreter._convert_float
    rounded = {tl.bfloat16: (torch.bfloat16, torch.int16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}

    def patch_with_numbers(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def convert_rounding(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source != tl.float32 or target not in rounded:
            return convert(data, source, target, mode)
        dtype, bits = rounded[target]
        return torch.from_numpy(np.array(data)).to(dtype).view(bits).numpy()

    splat = interpreter.InterpreterBuilder.create_splat

    def splat_of_conditions(self: Any, block: Any, one: Any) -> Any:
        made = splat(self, block, one)
        if one.data.dtype == bool:
            made.data = made.data.astype(bool)
        return made

    interpreter._patch_lang_tensor, interpreter._convert_float = patch_with_numbers, convert_rounding
    interpreter.InterpreterBuilder.create_splat = splat_of_conditions
