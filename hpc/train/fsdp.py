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

from hpc.train import ema

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


def keep_gathered(model: nn.Module) -> None:
    """Between forward and backward pass the weights stay as they were gathered: where a rank has all of them that costs
    2 bytes a weight in bfloat16, and spares casting and copying them again. model: `shard`'s last."""
    # without a way back nothing would drop them after it: checkpoints and means need this rank's part
    model.register_forward_pre_hook(lambda one, _: one.set_reshard_after_forward(not torch.is_grad_enabled()))


def norm(weights: Iterable[nn.Parameter]) -> Tensor:
    """Of all gradients, over all weights and ranks, float32, on their device; NaN or infinite where one of them is."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for grad in grads:
        groups.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(ema.local(grad))
    total = []
    for of, some in groups.items():
        squares = torch.stack(torch._foreach_norm(some)).square().sum()
        if of is not None:
            dist.all_reduce(squares, group=of["dp_shard"].get_group() if of.ndim > 1 else of.get_group())
        total.append(squares)
    return torch.stack(total).sum().sqrt()


def clip(weights: Iterable[nn.Parameter], limit: float) -> float:
    """Scales all gradients so that their norm, over all weights and ranks, is at most `limit`. Returns what it was; NaN
    or infinite where one of them is, and then nothing is scaled."""
    weights = list(weights)
    found = norm(weights).item()
    if limit < found < math.inf:
        grads = [ema.local(weight.grad) for weight in weights if weight.grad is not None]
        torch._foreach_mul_(grads, limit / found)
    return found


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
