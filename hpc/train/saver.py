"""What FSDP2 trainers write into a checkpoint, by torch.distributed.checkpoint: each rank its own part, in float32, to
be read by any number of ranks. It is copied at once, and written by a thread while training goes on.

    saver = Saver(keeper, here.files)
    saver.save(step, state)          # returns when the state is copied
    saver.wait()                     # before the process leaves

A state is a dict of dicts of tensors, sharded ones (DTensor) among them, and of plain values; each of them becomes a
folder, as in the published trainers (cosmos_predict2.5 50369b8: _src/predict2/checkpointer/dcp.py):

    iter_000000500/model/        net.<weight>, net_ema.<weight>: the first mean, net_ema_2.<weight>: the next
                   optim/        state.net.<weight>.{step,exp_avg,exp_avg_sq}
                   scheduler/    last_epoch, _last_lr: told, since the rate follows from the step
                   trainer/      iteration, skipped

The tensors of a state are the living ones, so a checkpoint is read into them where they lie: to go on takes no more
memory than to begin. When a checkpoint counts, and which ones stay, is hpc.train.checkpoint's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hpc.train import fsdp
from hpc.train.checkpoint import Keeper

State = dict[str, dict[str, Any]]


def prefix(number: int) -> str:
    """Of the weights (0), their first mean (1), the next (2), ... in a checkpoint."""
    return ("net", "net_ema")[number] if number < 2 else f"net_ema_{number}"


def state_of(model: nn.Module, optimizer: torch.optim.AdamW, means: Sequence[Mapping[str, Tensor]], step: int,
             skipped: int, rate: float = 0.0, called: Callable[[str], str] = str,
             beside: Mapping[str, Tensor] | None = None) -> State:  # fmt: skip
    """All that a training has. called: what a weight is called in the checkpoint; beside: what else the model's folder
    has, as those who read it elsewhere expect, with its prefix. To read one, give a state with any counts."""
    weights = [(f"net.{called(name)}", weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return {
        "model": {f"{prefix(number)}.{called(name)}": value.detach()
                  for number, part in enumerate([model.state_dict(), *means]) for name, value in part.items()}
        | dict(beside or {}),
        "optim": {f"state.{name}.{what}": value for name, weight in weights
                  for what, value in fsdp.moments(optimizer, weight).items()},
        "scheduler": {"last_epoch": step, "_last_lr": [rate]},
        "trainer": {"iteration": step, "skipped": skipped},
    }  # fmt: skip


def save(state: State, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    with warnings.catch_warnings():  # on each save, of what is inside torch
        warnings.simplefilter("ignore")
        for name, part in state.items():
            dcp.save(part, checkpoint_id=folder / name, process_group=group)


def load(state: State, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Into the tensors of the state, whatever number of ranks saved them; plain values are replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, part in state.items():
            dcp.load(part, checkpoint_id=folder / name, process_group=group)


def copied(value: Any, held: Any = None) -> Any:
    """A state as it is now, in memory of the CPU. held: an earlier copy of it, whose memory is taken again. Copies from
    a GPU are under way when this returns."""
    if isinstance(value, dict):
        return {key: copied(one, held[key] if held else None) for key, one in value.items()}
    if isinstance(value, DTensor):
        here = copied(value.to_local(), held.to_local() if held is not None else None)
        over = _on_cpu(value.device_mesh)
        return DTensor.from_local(
            here, over, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    if isinstance(value, Tensor):
        if held is None:  # pinned: as fast as the bus, and the GPU goes on meanwhile
            held = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return held.copy_(value.detach(), non_blocking=True)
    return value


@functools.cache
def _on_cpu(over: DeviceMesh) -> DeviceMesh:
    return over if over.device_type == "cpu" else DeviceMesh("cpu", over.mesh, mesh_dim_names=over.mesh_dim_names)


class Saver:
    """Of one training; every rank has one and calls it at the same steps."""

    def __init__(self, keeper: Keeper, group: dist.ProcessGroup) -> None:
        self.keeper, self.group = keeper, group
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[Path] | None = None
        self.held: State | None = None

    def save(self, step: int, state: State, more: dict[str, Any] | None = None) -> None:
        """Waits for the one before. Raises what went wrong with that."""
        self.wait()
        self.held = held = copied(state, self.held)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self.writing = self.thread.submit(self.keeper.save, step, lambda to: save(held, to, self.group), more)

    def wait(self) -> None:
        """Until the newest is on disk. Raises what went wrong."""
        if self.writing:
            self.writing.result()
            self.writing = None
