"""Cross entropy and z-loss of logits whose vocabulary is split over tensor-parallel ranks, without gathering them.

    ce  = mask * (lse - logit of the label)          lse = log sum exp of all logits of a position
    z   = z_weight * lse^2                           wherever there is a label

The loss of a sequence is mean(ce) over the mask plus mean(z) over the labels, as upstream trains it (cosmos_predict1
4ed35fa: autoregressive/training/model.py: z-loss counts the positions that the mask leaves out). This is the reference,
in torch; the fused kernel has the same signature.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

NO_LABEL = -1
ROWS = 2048
"""Positions whose logits are in float32 at a time."""


def cross_entropy(
    logits_SBV: Tensor, labels_SB: Tensor, mask_SB: Tensor, z_weight: float, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """(ce, z), each float32 [S, B], with a gradient.

    logits_SBV: this rank's columns, rank * V to (rank + 1) * V. labels_SB: int64, NO_LABEL where there is none.
    mask_SB: bool, where the cross entropy counts. group: of the tensor-parallel ranks; None for one.
    """
    return _CrossEntropy.apply(logits_SBV, labels_SB, mask_SB, z_weight, group)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_SBV, labels_SB, mask_SB, z_weight, group):
        logits, labels = logits_SBV.flatten(0, 1), labels_SB.flatten()
        ranks, rank = (dist.get_world_size(group), dist.get_rank(group)) if group is not None else (1, 0)
        local = labels - rank * logits.shape[1]
        here = (local >= 0) & (local < logits.shape[1]) & (labels != NO_LABEL)
        local = local.where(here, 0)
        most = logits.max(1).values.float()
        if ranks > 1:
            dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        sums = torch.stack([
            torch.cat([(x.float() - m[:, None]).exp_().sum(1) for x, m in _rows(logits, most)]),
            logits.gather(1, local[:, None])[:, 0].float() * here,
        ])  # fmt: skip
        if ranks > 1:
            dist.all_reduce(sums, group=group)
        lse = most + sums[0].log()
        counts = mask_SB.flatten().float() * (labels != NO_LABEL)
        there = z_weight * (labels != NO_LABEL)
        ctx.save_for_backward(logits, lse, local, counts, here, there)
        ctx.shape = logits_SBV.shape
        return (counts * (lse - sums[1])).view(labels_SB.shape), (there * lse * lse).view(labels_SB.shape)

    @staticmethod
    def backward(ctx, grad_ce, grad_z):
        logits, lse, local, counts, here, there = ctx.saved_tensors
        of_label = grad_ce.flatten() * counts
        of_all = of_label + 2 * there * lse * grad_z.flatten()
        grad = torch.empty_like(logits)
        for out, x, s, a in _rows(grad, logits, lse, of_all):
            out.copy_((x.float() - s[:, None]).exp_().mul_(a[:, None]))
        # the label's own term goes in before the rounding of the sum would lose it: computed anew in float32
        own = (logits.gather(1, local[:, None])[:, 0].float() - lse).exp() * of_all - of_label
        grad.scatter_(1, local[:, None], own.where(here, grad.gather(1, local[:, None])[:, 0].float())
                      .to(grad.dtype)[:, None])  # fmt: skip
        return grad.view(ctx.shape), None, None, None, None


def _rows(*tensors: Tensor) -> zip:  # type: ignore[type-arg]
    return zip(*(t.split(ROWS) for t in tensors), strict=True)
