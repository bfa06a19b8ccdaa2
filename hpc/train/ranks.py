"""The processes of a training: who this one is, where it computes, and the groups by which all of them meet.

    here = start()          # in each rank, once; alone (a script, a test) there is one rank

GPUs talk by NCCL. Decisions, and what is written to disk, go by gloo over groups of their own: no GPU waits for them,
and the thread that writes a checkpoint never meets the training's own messages.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from hpc.data import gpu_types
from hpc.train.checkpoint import Ranks

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others before it fails."""


class Here(NamedTuple):
    rank: int
    count: int
    device: torch.device
    words: dist.ProcessGroup
    """For decisions (hpc.train.agree)."""
    files: dist.ProcessGroup
    """For checkpoints: of the thread that writes them."""

    def writers(self) -> Ranks:
        """For a Keeper."""
        return Ranks(self.rank, self.count, lambda: dist.barrier(group=self.files))


def start(deterministic: bool = False) -> Here:
    """Joins the others, once a process. deterministic: see `torch.use_deterministic_algorithms`. Raises RuntimeError
    where there are fewer GPUs on this node than ranks."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            ranks = os.environ.get("LOCAL_WORLD_SIZE", local + 1)
            raise RuntimeError(f"{torch.cuda.device_count()} GPUs for {ranks} ranks on this node: each rank needs one "
                               "(resources: {workers: ranks a node, gpus: 1})")  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=PATIENCE)
        else:
            dist.init_process_group(backend, store=dist.TCPStore("127.0.0.1", 0, 1, True), rank=0, world_size=1)
    groups = [dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2)]
    return Here(dist.get_rank(), dist.get_world_size(), device, *groups)


def memory(device: torch.device) -> int:
    """Bytes at most so far: of the GPU as PyTorch has them, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def took(
    here: Here, seconds: float, waited: float, stall: float, samples: int, tokens: float = 0, flops: float = 0
) -> dict[str, float]:
    """What a step took, for metrics: its own seconds, those in which this rank waited for data, and those that the
    checkpoint before held it up, which all count in what is done a second. samples, tokens, flops: of all ranks. MFU is
    a share of the dense bfloat16 peak, where it is known; what is computed twice does not count."""
    each = seconds + waited + stall
    out = {"samples": samples, "seconds": seconds, "waited": waited, "checkpoint_seconds": stall,
           "samples_per_second": samples / each, "memory_bytes": memory(here.device)}  # fmt: skip
    if tokens:
        out |= {"tokens": tokens, "tokens_per_second": tokens / each,
                "tokens_per_second_per_gpu": tokens / each / here.count}  # fmt: skip
    if flops:
        out["tflops_per_gpu"] = flops / each / here.count / 1e12
        if gpu := gpu_types.named(torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else ""):
            out["mfu"] = out["tflops_per_gpu"] * 1e12 / gpu.bf16
    return out


def mean_of_all(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalars on this rank's device -> their means over all ranks; every rank calls it, with the same names."""
    names = sorted(values)
    together = torch.stack([values[name].detach().float() for name in names])
    dist.all_reduce(together)
    return dict(zip(names, (together / dist.get_world_size()).tolist(), strict=True))
