"""One step of AdamW for many tensors, their moving averages and copies in bf16 with it: every number is touched once.

For a parameter p with gradient g, step t (from 1), learning rate lr, decay w, and averages e of share b each:

    g' = g * grad_scale                                        (a number on the GPU: clipping, loss scale)
    m = m + (1 - beta1) (g' - m),  v = beta2 v + (1 - beta2) g'^2
    p = p (1 - lr w) - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
    e = e + (1 - b) (p - e),  copy = p in bf16

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", in the order of torch.optim.AdamW. All in fp32. Where
grad_scale is NaN or infinite nothing changes: a skipped step needs no word from the GPU first.

One launch for all tensors: their addresses are a table on the GPU, a program takes a chunk of one of them. With one
average, fp32 gradients and the bf16 copy that are 38 bytes a parameter (p, m, v, e read and written, g read, the copy
written); AdamW, the average and the copy, each in a pass of its own, take 46.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpc.kernels import choose, jit, tl

MOST_AVERAGES = 3
CHUNK = 16384
"""Numbers of one tensor that a program takes."""


@jit
def _block(
    p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, e0_ptr, e1_ptr, e2_ptr, at, end,
    scale, keep, rate, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, e0_rate, e1_rate, e2_rate,
    COPY: tl.constexpr, EMAS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    mask = at < end if MASKED else None
    g = tl.load(g_ptr + at, mask=mask).to(tl.float32) * scale
    p, m, v = tl.load(p_ptr + at, mask=mask), tl.load(m_ptr + at, mask=mask), tl.load(v_ptr + at, mask=mask)
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    p = p * keep - rate * (m / (tl.sqrt(v) / root_correction + eps))
    tl.store(m_ptr + at, m, mask=mask)
    tl.store(v_ptr + at, v, mask=mask)
    tl.store(p_ptr + at, p, mask=mask)
    if COPY:
        tl.store(copy_ptr + at, p.to(copy_ptr.dtype.element_ty), mask=mask)
    if EMAS > 0:
        e = tl.load(e0_ptr + at, mask=mask)
        tl.store(e0_ptr + at, e + e0_rate * (p - e), mask=mask)
    if EMAS > 1:
        e = tl.load(e1_ptr + at, mask=mask)
        tl.store(e1_ptr + at, e + e1_rate * (p - e), mask=mask)
    if EMAS > 2:
        e = tl.load(e2_ptr + at, mask=mask)
        tl.store(e2_ptr + at, e + e2_rate * (p - e), mask=mask)


@jit
def _address(table_ptr, row, tensors, tensor, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table_ptr + row * tensors + tensor).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@jit
def _step(
    table_ptr, chunks_ptr, scale_ptr, counted_ptr, tensors,
    keep, rate, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, e0_rate, e1_rate, e2_rate,
    GRAD: tl.constexpr, STATE: tl.constexpr, COPY_TYPE: tl.constexpr, SCALED: tl.constexpr, COPY: tl.constexpr,
    COUNTED: tl.constexpr, EMAS: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table_ptr int64 [.., tensors]: lengths, addresses of p, g, m, v, copy and averages; chunks_ptr [programs, 2].
    COUNTED: rate and root_correction are in counted_ptr."""
    keep, one_minus_beta1 = tl.cast(keep, tl.float32), tl.cast(one_minus_beta1, tl.float32)
    beta2, one_minus_beta2 = tl.cast(beta2, tl.float32), tl.cast(one_minus_beta2, tl.float32)
    eps = tl.cast(eps, tl.float32)
    e0_rate, e1_rate, e2_rate = tl.cast(e0_rate, tl.float32), tl.cast(e1_rate, tl.float32), tl.cast(e2_rate, tl.float32)
    if COUNTED:
        rate, root_correction = tl.load(counted_ptr), tl.load(counted_ptr + 1)
    else:
        rate, root_correction = tl.cast(rate, tl.float32), tl.cast(root_correction, tl.float32)
    tensor = tl.load(chunks_ptr + 2 * tl.program_id(0))
    first = tl.load(chunks_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * CHUNK
    end = tl.load(table_ptr + tensor)
    scale = 1.0
    if SCALED:
        scale = tl.load(scale_ptr).to(tl.float32)
    p_ptr = _address(table_ptr, 1, tensors, tensor, STATE, ALIGNED)
    g_ptr = _address(table_ptr, 2, tensors, tensor, GRAD, ALIGNED)
    m_ptr = _address(table_ptr, 3, tensors, tensor, STATE, ALIGNED)
    v_ptr = _address(table_ptr, 4, tensors, tensor, STATE, ALIGNED)
    copy_ptr, e0_ptr, e1_ptr, e2_ptr = p_ptr, p_ptr, p_ptr, p_ptr
    if COPY:
        copy_ptr = _address(table_ptr, 5, tensors, tensor, COPY_TYPE, ALIGNED)
    if EMAS > 0:
        e0_ptr = _address(table_ptr, 6, tensors, tensor, STATE, ALIGNED)
    if EMAS > 1:
        e1_ptr = _address(table_ptr, 7, tensors, tensor, STATE, ALIGNED)
    if EMAS > 2:
        e2_ptr = _address(table_ptr, 8, tensors, tensor, STATE, ALIGNED)
    if tl.abs(scale) < float("inf"):
        for offset in range(0, CHUNK, BLOCK):
            start = first + offset
            at = start + tl.arange(0, BLOCK)
            if start + BLOCK <= end:
                _block(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, e0_ptr, e1_ptr, e2_ptr, at, end, scale, keep, rate,
                       one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, e0_rate, e1_rate, e2_rate,
                       COPY, EMAS, False)  # fmt: skip
            elif start < end:
                _block(p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, e0_ptr, e1_ptr, e2_ptr, at, end, scale, keep, rate,
                       one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, e0_rate, e1_rate, e2_rate,
                       COPY, EMAS, True)  # fmt: skip


def config() -> dict[str, int]:
    """Numbers of a tile, and warps; tests/bench_kernels.py tries others."""
    return {"BLOCK": 1024, "num_warps": 4}


@functools.lru_cache(maxsize=16)
def _chunks(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [programs, 2]: (tensor, which of its chunks)."""
    counts = torch.tensor([-(-n // CHUNK) for n in lengths])
    tensor = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    chunk = torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]
    return torch.stack((tensor, chunk), dim=1).to(torch.int32).to(device)


def _launch(
    params: Sequence[Tensor], grads: Sequence[Tensor], lists: list[Sequence[Tensor]], *, averages: int, copies: bool,
    numbers: tuple[float, ...], grad_scale: Tensor | None, counted: Tensor | None,
) -> None:  # fmt: skip
    device, types = params[0].device, {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
    lengths = [p.numel() for p in params]
    addresses = [[t.data_ptr() for t in tensors] for tensors in lists]
    table = torch.tensor([lengths, *addresses], dtype=torch.int64)
    if params[0].is_cuda:  # from pinned memory, so that nobody waits for the GPU
        table = table.pin_memory().to(device, non_blocking=True)
    chunks = _chunks(tuple(lengths), device)
    if len(chunks):
        _step[(len(chunks),)](
            table, chunks, grad_scale, counted, len(params), *numbers,
            GRAD=types[grads[0].dtype], STATE=tl.float32, COPY_TYPE=tl.bfloat16, SCALED=grad_scale is not None,
            COPY=copies, COUNTED=counted is not None, EMAS=averages, CHUNK=CHUNK,
            ALIGNED=all(a % 16 == 0 for row in addresses for a in row), **config(),
        )  # fmt: skip


def adamw_ema(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], *,
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int | Tensor,
    averages: Sequence[Sequence[Tensor]] = (), average_betas: Sequence[float] = (),
    copies: Sequence[Tensor] | None = None, grad_scale: Tensor | None = None, kernels: str = "auto",
) -> None:  # fmt: skip
    """One step, in place, of all these tensors; one call for each group of parameters.

    params, exp_avgs, exp_avg_sqs and each of the averages (at most 3 lists): fp32, contiguous (of a sharded parameter
    its local part); grads: all fp32 or all bf16; copies: bf16, written only. step counts from 1,
    and may be one number on the tensors' device, which nobody waits for then; average_betas: the
    share of the old average that stays, one for each list; grad_scale: one number, on the tensors' device, that
    gradients are multiplied by: if it is not finite, nothing changes. Raises ValueError for tensors that do not fit.
    """
    params, grads = list(params), list(grads)
    if len(averages) != len(average_betas) or len(averages) > MOST_AVERAGES:
        raise ValueError(f"{len(averages)} averages with {len(average_betas)} betas: as many of both, at most 3")
    lists: dict[str, Sequence[Tensor]] = {"params": params, "grads": grads, "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs}  # fmt: skip
    lists |= {"copies": copies} if copies is not None else {}
    lists |= {f"averages[{i}]": average for i, average in enumerate(averages)}
    if not params:
        return
    for name, tensors in lists.items():
        dtypes = {"grads": (torch.float32, torch.bfloat16), "copies": (torch.bfloat16,)}.get(name, (torch.float32,))
        if len(tensors) != len(params):
            raise ValueError(f"{name}: {len(tensors)} tensors for {len(params)} parameters")
        for i, t in enumerate(tensors):
            fits = t.numel() == params[i].numel() and t.is_contiguous()
            if not fits or t.dtype not in dtypes or t.dtype != tensors[0].dtype:
                raise ValueError(
                    f"{name}[{i}] is {list(t.shape)} {t.dtype} with strides {t.stride()}; it must be contiguous, with "
                    f"{params[i].numel()} numbers of {' or '.join(map(str, dtypes))}, alike for all of {name}"
                )
    beta1, beta2 = betas
    keep, rate, root_correction, counted = 1 - lr * weight_decay, 0.0, 0.0, None
    if isinstance(step, Tensor):
        count = step.double()
        counted = torch.stack((lr / (1 - beta1**count), (1 - beta2**count).sqrt())).float().view(2)
    else:
        rate, root_correction = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    if choose(kernels, params[0]) == "torch":
        of_step = (rate, root_correction) if counted is None else counted.tolist()
        numbers = beta1, beta2, keep, *of_step, eps
        adamw_ema_reference(params, grads, exp_avgs, exp_avg_sqs, averages, average_betas, copies, grad_scale, *numbers)
        return
    rates = [1 - b for b in average_betas] + [0.0] * (MOST_AVERAGES - len(averages))
    filler = [] if copies is not None else [params]  # so that each row of the table is where the kernel looks
    _launch(
        params, grads, [params, grads, exp_avgs, exp_avg_sqs, *filler, *list(lists.values())[4:]],
        averages=len(averages), copies=copies is not None, grad_scale=grad_scale, counted=counted,
        numbers=(keep, rate, 1 - beta1, beta2, 1 - beta2, root_correction, eps, *rates),
    )  # fmt: skip


@torch.no_grad()
def adamw_ema_reference(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    averages: Sequence[Sequence[Tensor]], average_betas: Sequence[float], copies: Sequence[Tensor] | None,
    grad_scale: Tensor | None, beta1: float, beta2: float, keep: float, rate: float, root_correction: float, eps: float,
) -> None:  # fmt: skip
    """The formula in plain torch: keep = 1 - lr w, rate = lr / (1 - beta1^t), root_correction = sqrt(1 - beta2^t)."""
    if grad_scale is not None and not bool(grad_scale.isfinite()):
        return
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = g.to(p.dtype) if grad_scale is None else g.to(p.dtype) * grad_scale
        m.lerp_(g.view_as(m), 1 - beta1)
        v.mul_(beta2).addcmul_(g.view_as(v), g.view_as(v), value=1 - beta2)
        p.mul_(keep).sub_(rate * (m / (v.sqrt() / root_correction + eps)).view_as(p))
        if copies is not None:
            copies[i].copy_(p.view_as(copies[i]))
        for average, beta in zip(averages, average_betas, strict=True):
            average[i].lerp_(p.view_as(average[i]), 1 - beta)
