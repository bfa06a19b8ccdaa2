"""Cross entropy over a vocabulary that tensor parallelism has split, with what a z-loss needs: two passes over logits.

For the logits x of a position (V classes on W ranks, V/W each), its label t and the gradients a, b that come back:

    lse = log(sum over all classes of exp(x)),  ce = lse - x[t]      (0 where the mask says so)
    dx = exp(x - lse) * (a + b) - [class is t] * a                   (a counts as 0 where the mask says so)

The loss of Cosmos' autoregressive models is mean(ce) over the positions that count + 1e-4 * mean(lse^2) over all of
them; both outputs are differentiable, so that the caller writes it down as that.

Each rank reads its logits once, in bf16, and comes to three numbers a position: their maximum, the sum of exponentials
over it, the label's logit. One all-gather of these (12 bytes a position and rank), then every rank knows all: no
gather of logits, no copy of them in fp32. The backward writes gradients over the logits, whose values nobody needs any
more; who had saved them for a backward of their own is told so by autograd. 12,800 x 64,000 in bf16 are 1.64 GB: read
once, then read and written once. Exponentials are powers of two (one fused multiply-add and one instruction each);
ranks add in their order, and so come to the same bits.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from hpc.kernels import choose, jit, maths, tl, triton

LOG2E = math.log2(math.e)


@jit
def _stats(
    logits_ptr, labels_ptr, stats_ptr, row_stride, classes, first_class, positions,
    LOG2E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """stats_ptr [3, positions]: maximum, sum of exp(x - maximum), the label's logit (0 if it is another rank's)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    col = tl.arange(0, BLOCK)
    top = -1.0e38  # not -inf: rows may begin with classes of -inf
    total = tl.zeros((BLOCK,), tl.float32)  # one a column, so that tiles meet in their maximum alone
    for start in range(0, classes, BLOCK):
        x = tl.load(logits_ptr + start + col, mask=start + col < classes, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp2((top - higher) * LOG2E) + tl.exp2(x * LOG2E - higher * LOG2E)
        top = higher
    label = tl.load(labels_ptr + row).to(tl.int64) - first_class
    mine = (label >= 0) & (label < classes)
    target = tl.load(logits_ptr + tl.where(mine, label, 0), mask=mine, other=0.0).to(tl.float32)
    tl.store(stats_ptr + row, top)
    tl.store(stats_ptr + positions + row, tl.sum(total, axis=0))
    tl.store(stats_ptr + 2 * positions + row, target)


@jit
def _combine(
    stats_ptr, labels_ptr, mask_ptr, ce_ptr, lse_ptr, positions, all_classes,
    RANKS: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """stats_ptr [RANKS, 3, positions] -> ce, lse [positions]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < positions
    top = tl.load(stats_ptr + row, mask=inside, other=0.0)
    for rank in tl.static_range(1, RANKS):
        top = tl.maximum(top, tl.load(stats_ptr + 3 * rank * positions + row, mask=inside, other=0.0))
    total = tl.zeros((BLOCK,), tl.float32)
    target = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(RANKS):
        at = stats_ptr + 3 * rank * positions + row
        share = tl.load(at + positions, mask=inside, other=1.0)
        total += share * tl.exp(tl.load(at, mask=inside, other=0.0) - top)
        target += tl.load(at + 2 * positions, mask=inside, other=0.0)
    lse = top + tl.log(total)
    label = tl.load(labels_ptr + row, mask=inside, other=0)
    ce = tl.where((label >= 0) & (label < all_classes), lse - target, float("nan"))
    if MASK:
        ce = tl.where(tl.load(mask_ptr + row, mask=inside, other=0) != 0, ce, 0.0)
    tl.store(lse_ptr + row, lse, mask=inside)
    tl.store(ce_ptr + row, ce, mask=inside)


@jit
def _backward(
    logits_ptr, labels_ptr, mask_ptr, lse_ptr, d_ce_ptr, d_lse_ptr, row_stride, classes, first_class,
    LOG2E: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients over the logits; a program has BLOCK classes of one position. Without a gradient nothing is read."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(d_ce_ptr + row)
    if MASK:
        a = tl.where(tl.load(mask_ptr + row) != 0, a, 0.0)
    both = a + tl.load(d_lse_ptr + row)
    label = tl.load(labels_ptr + row).to(tl.int64) - first_class
    lse = tl.load(lse_ptr + row)
    at = logits_ptr + row * row_stride + col
    readable = tl.where((a == 0.0) & (both == 0.0), 0, classes)
    x = tl.load(at, mask=col < readable, other=-float("inf")).to(tl.float32)
    dx = tl.exp2(x * LOG2E - lse * LOG2E) * both - tl.where(col == label, a, 0.0)
    tl.store(at, dx.to(logits_ptr.dtype.element_ty), mask=col < classes)


def config(classes: int, *, backward: bool) -> dict[str, int]:
    """Classes of a tile, and warps, for so many classes on this rank; tests/bench_kernels.py tries others."""
    return {"BLOCK": min(triton.next_power_of_2(classes), 2048 if backward else 8192), "num_warps": 4}


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_NV, labels_N, mask_N, group):  # type: ignore[no-untyped-def]
        n, classes = logits_NV.shape
        ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
        stats = torch.empty(3, n, dtype=torch.float32, device=logits_NV.device)
        ce_N, lse_N = (torch.empty(n, dtype=torch.float32, device=logits_NV.device) for _ in range(2))
        if n:
            _stats[(n,)](
                logits_NV, labels_N, stats, logits_NV.stride(0), classes, rank * classes, n, LOG2E=LOG2E,
                **config(classes, backward=False),
            )  # fmt: skip
        gathered = stats[None]
        if ranks > 1:
            gathered = stats.new_empty(ranks, 3, n)
            dist.all_gather_into_tensor(gathered.view(-1), stats.view(-1), group=group)
        if n:
            _combine[(triton.cdiv(n, 128),)](
                gathered, labels_N, mask_N, ce_N, lse_N, n, ranks * classes, RANKS=ranks, MASK=mask_N is not None,
                BLOCK=128, num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(logits_NV, labels_N, mask_N, lse_N)
        ctx.first_class, ctx.used = rank * classes, False
        return ce_N, lse_N

    @staticmethod
    def backward(ctx, d_ce_N, d_lse_N):  # type: ignore[no-untyped-def]
        if ctx.used:
            raise RuntimeError("the backward of cross_entropy writes over the logits and so runs once: retain_graph "
                               "cannot repeat it; compute the logits and the loss again")  # fmt: skip
        logits_NV, labels_N, mask_N, lse_N = ctx.saved_tensors
        ctx.used = True
        n, classes = logits_NV.shape
        if n:
            use = config(classes, backward=True)
            _backward[(n, triton.cdiv(classes, use["BLOCK"]))](
                logits_NV, labels_N, mask_N, lse_N, d_ce_N.contiguous(), d_lse_N.contiguous(), logits_NV.stride(0),
                classes, ctx.first_class, LOG2E=LOG2E, MASK=mask_N is not None, **use,
            )  # fmt: skip
        torch.autograd.graph.increment_version(logits_NV)
        return logits_NV, None, None, None


def cross_entropy(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, group: dist.ProcessGroup | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(ce, lse), fp32, of the shape of the labels; the gradient of the logits is written over the logits.

    logits [..., V/W], this rank's classes rank * V/W ... of all V, with W the ranks of `group` (None: all classes are
    here); labels [...], integers 0..V-1, the same on all ranks; mask [...], true or non-zero where ce counts: elsewhere
    it is 0, whatever the label, while lse is given everywhere. A label outside the vocabulary where it counts makes its
    ce NaN. With a group it is a collective call. The backward can run once. `kernels` torch is the same by plain torch,
    which needs the memory of several fp32 copies.
    """
    if labels.shape != logits.shape[:-1] or (mask is not None and mask.shape != labels.shape):
        raise ValueError(f"logits {list(logits.shape)} want labels of {list(logits.shape[:-1])}, a mask of the same; "
                         f"given: {list(labels.shape)} and {None if mask is None else list(mask.shape)}")  # fmt: skip
    if choose(kernels, logits) == "torch":
        return cross_entropy_reference(logits, labels, mask, group=group)
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    flat_mask = None if mask is None else mask.reshape(-1).contiguous()
    if flat_mask is not None and flat_mask.dtype == torch.bool:
        flat_mask = flat_mask.view(torch.uint8)
    ce, lse = _CrossEntropy.apply(flat, labels.reshape(-1).contiguous(), flat_mask, group)
    return ce.view(labels.shape), lse.view(labels.shape)


def cross_entropy_reference(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """The formula in plain torch, in fp32, or in fp64 for logits of it; group: any backend (gloo)."""
    x = logits.to(maths(logits))
    classes = x.shape[-1]
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))

    def over_ranks(t: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """The sum of all ranks' values; only this rank's share has a gradient here: the others have theirs."""
        if ranks == 1:
            return t
        whole = t.detach().clone()
        dist.all_reduce(whole, op, group)
        return t + (whole - t.detach())

    top = over_ranks(x.detach().amax(-1), dist.ReduceOp.MAX)
    lse = top + over_ranks((x - top[..., None]).exp().sum(-1)).log()
    mine = labels.long() - rank * classes
    here = (mine >= 0) & (mine < classes)
    target = torch.where(here, x.gather(-1, mine.clamp(0, classes - 1)[..., None])[..., 0], 0.0)
    ce = lse - over_ranks(target)
    ce = torch.where((labels >= 0) & (labels < ranks * classes), ce, torch.nan)
    return (ce if mask is None else torch.where(mask != 0, ce, torch.zeros_like(ce))), lse
