"""What FSDP2 trainers write into a checkpoint, by torch.distributed.checkpoint: each rank its own part, in float32, to
be read by any number of ranks. It is copied at once, and written by a thread while training goes on.

    saver = Saver(keeper, here.files)
    saver.save(step, state)          # returns when the state is copied
    saver.wait()                     # before the process leaves

A state is a dict of dicts of tensors, sharded ones (DTensor) among them, and of plain values. When a checkpoint counts,
and which ones stay, is hpc.train.checkpoint's.
"""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hpc.train.checkpoint import Keeper

State = dict[str, Any]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, mean: dict[str, Tensor], skipped: int) -> State:
    """All that a training has but its step: the tensors are the living ones, not copies."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "mean": mean, "counts": {"skipped": torch.tensor(skipped)}}


def put_back(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """What was read into a `state_of` becomes the model's and the optimizer's. Returns the count of skipped steps."""
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["counts"]["skipped"])


def save(state: State, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    with warnings.catch_warnings():  # on each save, of what is inside torch
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, process_group=group)


def load(state: State, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Into the tensors of the state, whatever number of ranks saved them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, process_group=group)


def copied(value: Any) -> Any:
    """A state as it is now, in memory of the CPU."""
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, DTensor):
        here = copied(value.to_local())
        over = _on_cpu(value.device_mesh)
        return DTensor.from_local(
            here, over, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


@functools.cache
def _on_cpu(over: DeviceMesh) -> DeviceMesh:
    return over if over.device_type == "cpu" else DeviceMesh("cpu", over.mesh, mesh_dim_names=over.mesh_dim_names)


class Saver:
    """Of one training; every rank has one and calls it at the same steps."""

    def __init__(self, keeper: Keeper, group: dist.ProcessGroup) -> None:
        self.keeper, self.group = keeper, group
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[Path] | None = None

    def save(self, step: int, state: State, more: dict[str, Any] | None = None) -> None:
        """Waits for the one before. Raises what went wrong with that."""
        self.wait()
        held = copied(state)
        self.writing = self.thread.submit(self.keeper.save, step, lambda to: save(held, to, self.group), more)

    def wait(self) -> None:
        """Until the newest is on disk. Raises what went wrong."""
        if self.writing:
            self.writing.result()
            self.writing = None
