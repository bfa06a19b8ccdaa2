"""Models whose weights, gradients and optimizer are spread over the ranks: torch's FSDP2 (`fully_shard`).

    ranks = mesh(here.device)
    shard([model.encoder, model.decoder], ranks)     # each is gathered as a whole when it runs
    norm = clip(model.parameters(), 1.0)             # after backward
    whole(dict(model.named_parameters()))            # on rank 0, in memory

Gradients are means over ranks, so a loss is the mean over a rank's samples, and each rank has as many. Where a batch is
computed in several parts, each part's gradients are added up where they are kept, in float32, spread over the ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

# Networks return views of what they computed; they are changed in place nowhere.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def mesh(device: torch.device, shard: int | None = None) -> DeviceMesh:
    """All ranks. shard: over so many neighbours weights are spread, and each such group has all of them (None: over all
    ranks). Raises ValueError where groups of this size cannot be made."""
    ranks = dist.get_world_size()
    if shard is None or shard == ranks:
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("dp_shard",))
    if ranks % shard:
        raise ValueError(f"{ranks} ranks cannot be grouped by {shard}")
    return init_device_mesh(device.type, (ranks // shard, shard), mesh_dim_names=("dp_replicate", "dp_shard"))


def shard(modules: Iterable[nn.Module], over: DeviceMesh, precision: MixedPrecisionPolicy | None = None) -> None:
    """Each of the modules is spread by itself: inner ones first, then those around them. All have float32 weights."""
    for module in modules:
        for weight in module.parameters():
            if not isinstance(weight, DTensor):
                weight.data = weight.data.contiguous()  # FSDP takes no other layout
        fully_shard(module, mesh=over, mp_policy=precision or MixedPrecisionPolicy(), reshard_after_forward=True)


def clip(weights: Iterable[nn.Parameter], limit: float) -> float:
    """Scales all gradients so that their norm, over all weights and ranks, is at most `limit`. Returns what it was; NaN
    or infinite where one of them is, and then nothing is scaled."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for grad in grads:
        groups.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(grad)
    total = 0.0
    for of, some in groups.items():
        norms = torch._foreach_norm([one.to_local() if isinstance(one, DTensor) else one for one in some])
        squares = torch.stack(norms).square().sum()
        if of is not None:
            dist.all_reduce(squares, group=of["dp_shard"].get_group() if of.ndim > 1 else of.get_group())
        total += squares.item()
    norm = math.sqrt(total) if total == total else total
    if limit < norm < math.inf:
        torch._foreach_mul_([one.to_local() if isinstance(one, DTensor) else one for one in grads], limit / norm)
    return norm


def moments(optimizer: torch.optim.AdamW, weight: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a weight, before its first step as after it."""
    state = optimizer.state[weight]
    if not state:  # as the optimizer makes it itself: the counter lies beside the weight where steps are fused
        where = weight.device if optimizer.defaults["fused"] else "cpu"
        state |= {"step": torch.zeros((), dtype=torch.float32, device=where),
                  "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}  # fmt: skip
    return state


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor, on the CPU of rank 0; {} on the others. Every rank calls it."""
    found = {}
    for name, one in tensors.items():
        full = one.detach().redistribute(placements=[Replicate()] * one.device_mesh.ndim).to_local() if isinstance(
            one, DTensor) else one.detach()  # fmt: skip
        if dist.get_rank() == 0:
            found[name] = full.cpu().clone()
    return found
