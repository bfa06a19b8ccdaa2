"""Decisions of all ranks: a warning to any of them becomes everyone's, at the end of the same step.

Slurm warns of the time limit and of preemption, and ranks hear of it at different moments (hpc.batch.runner); the
largest word that any of them has heard is what all do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from hpc.data.work import Stopped


def agreed(check: Callable[[], None], also: bool = False, group: dist.ProcessGroup | None = None) -> tuple[bool, bool]:
    """(must all ranks leave?, did any rank say `also`?). A collective: every rank calls it after each step.

    check: Work.check, which raises Stopped on a rank that was told to leave. also: what any one rank may ask for, such
    as a checkpoint that rank 0's clock says is due. group: of gloo, where the training's own is NCCL's, so that no GPU
    waits for it.
    """
    try:
        check()
        leave = False
    except Stopped:
        leave = True
    words = torch.tensor([int(leave), int(also)])
    if dist.is_initialized():
        dist.all_reduce(words, dist.ReduceOp.MAX, group=group)
    leave, asked = map(bool, words.tolist())
    return leave, asked
