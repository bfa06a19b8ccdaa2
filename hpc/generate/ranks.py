"""Ranks that make videos together: a part of a model each, or a part of each video's frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from hpc.data.work import Stopped


class Ranks:
    """Of one, without torch.distributed, or of as many as there are."""

    def __init__(self, several: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rank, self.group = 0, None
        if not several:
            return
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
        self.rank, self.group = dist.get_rank(), dist.group.WORLD

    def shared(self, find: Callable[[], Any]) -> Any:
        """What the first rank finds, on all of them."""
        found = [find() if self.rank == 0 else None]
        if self.group is not None:
            dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def agreed(self, check: Callable[[], None], each: int = 1) -> Callable[[], None]:
        """A check that all ranks call as often: they leave at the same one. each: calls from one look at the others to
        the next, which costs an exchange."""
        if self.group is None:
            return check
        calls = 0

        def together() -> None:
            nonlocal calls
            calls += 1
            if calls % each:
                return
            leave = torch.zeros(1, dtype=torch.int32)
            try:
                check()
            except Stopped:
                leave += 1
            dist.all_reduce(leave, dist.ReduceOp.MAX, group=self.group)
            if leave:
                raise Stopped

        return together
