"""Leaving in time: a warning to any rank becomes a decision of all of them, at the end of the same step.

Slurm sends USR2 some minutes before the time limit (sbatch/train.sbatch), TERM when a job is preempted or cancelled.
Ranks hear of it at different moments; the largest word that any of them heard is what all do.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

GO_ON, SAVE_AND_LEAVE = 0, 1


class Warned:
    """From the moment it is made. group: where ranks agree, e.g. a gloo group beside NCCL's, so that no GPU waits."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group, self.heard = group, GO_ON
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = SAVE_AND_LEAVE

    def agreed(self, also: bool = False) -> tuple[bool, bool]:
        """(must all ranks leave?, did any rank say `also`?). A collective: every rank calls it after each step.

        also: what any one rank may ask for, such as a checkpoint that rank 0's clock says is due.
        """
        words = torch.tensor([self.heard, int(also)])
        if dist.is_initialized():
            dist.all_reduce(words, dist.ReduceOp.MAX, group=self.group)
        leave, asked = words.tolist()
        return bool(leave), bool(asked)
