"""GPU kernels, one op a file, each laid out alike: formula, kernel, launch, autograd, plain torch reference. Two
share e4m3.py.

They import torch and triton only, and are imported as hpc.kernels. `kernels: auto | torch | fused` of a spec reaches
every op as its argument `kernels`, and `choose` says what it comes to. A torch without Triton (its CPU builds bring
none) imports all of it too: the references then are all there is.

Block sizes are fixed by shape, never timed at run time: triton.autotune may choose otherwise in the next process, and
sums would then be taken in another order, so that a resumed run would not repeat the losses of an uninterrupted one.
tests/bench_kernels.py tries the alternatives.

A launch is never given a tensor twice if it writes to it, and None for what there is not: torch.compile gives each
argument that is written a copy of its own, and takes the last one of a tensor's for its value, written or not (torch
2.11, _higher_order_ops/triton_kernel_wrap.py). Nor is an autograd function given a tensor twice: see `apart`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

KERNELS = ("auto", "torch", "fused")


def jit(kernel: Callable[..., None]) -> Any:
    """triton.jit, where there is Triton."""
    return triton.jit(kernel) if triton else kernel


def choose(kernels: str, tensor: torch.Tensor) -> str:
    """ "fused" or "torch": which form of an op works on this tensor.

    `auto` is fused on CUDA where Triton is installed, else torch. Raises ValueError where `fused` cannot be, with the
    reason. Under Triton's interpreter (TRITON_INTERPRET=1 when it is imported) fused kernels run on CPUs too, slowly:
    for tests.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels: {kernels!r} is not one of {', '.join(KERNELS)}")
    if kernels == "torch":
        return "torch"
    why = ""
    if triton is None:
        why = "Triton is not installed (python -m pip install triton)"
    elif not tensor.is_cuda and not triton.knobs.runtime.interpret:
        why = f"the tensors are on {tensor.device}, and Triton compiles for GPUs"
    if kernels == "fused" and why:
        raise ValueError(f"kernels: fused cannot be used: {why}; say `kernels: auto` or `kernels: torch`")
    return "torch" if why or (not tensor.is_cuda and kernels == "auto") else "fused"


def processors(tensor: torch.Tensor) -> int:
    """How many multiprocessors the tensor's device has; 2 for the interpreter, so that tests see more than one."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 2


def apart(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The same; what has come before as a view of it. What an op gives its autograd function goes through this.

    torch.compile makes one input of a tensor that is given twice, and of its gradients keeps the last alone (pytorch
    issue 181146: torch 2.11; since 184281 it refuses to compile such a call).
    """
    given: list[torch.Tensor | None] = []
    for tensor in tensors:
        seen = tensor is not None and any(tensor is other for other in given)
        given.append(tensor.view_as(tensor) if tensor is not None and seen else tensor)
    return given


def maths(*tensors: torch.Tensor) -> torch.dtype:
    """What references compute in: fp32, or fp64 where a tensor is of it."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
