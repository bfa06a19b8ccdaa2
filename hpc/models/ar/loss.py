"""Cross entropy and z-loss of a model's logits, whose classes may be split over tensor-parallel ranks.

    ce  = mask * (lse - logit of the label)          lse = log sum exp of all logits of a position
    z   = z_weight * lse^2                           wherever there is a label

The loss of a sequence is mean(ce) over the mask plus mean(z) over the labels, as upstream trains it (cosmos_predict1
4ed35fa: autoregressive/training/model.py: z-loss counts the positions that the mask leaves out).
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from hpc.kernels import cross_entropy

NO_LABEL = -1


def losses(
    logits_SBV: Tensor,
    labels_SB: Tensor,
    mask_SB: Tensor,
    z_weight: float,
    group: dist.ProcessGroup | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(ce, z), each float32 [S, B], to be summed and divided by the caller: sums are the same for every layout.

    logits_SBV: this rank's columns, rank * V to (rank + 1) * V; their memory may hold the gradient afterwards.
    labels_SB: int64, NO_LABEL where there is none. mask_SB: bool, where the cross entropy counts, given a label.
    group: of the tensor-parallel ranks; None for one.
    """
    there = labels_SB != NO_LABEL
    ce, lse = cross_entropy.cross_entropy(logits_SBV, labels_SB, mask_SB & there, group=group, kernels=kernels)
    return ce, z_weight * there * lse.square()
