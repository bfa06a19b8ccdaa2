"""AdamW over megatron-core's distributed optimizer in one pass: clipping, weights, moments and the bfloat16 copies.

The optimizer's own step passes over the gradients to clip them, over all for AdamW, and over the weights to copy them
from float32 to bfloat16: 42 bytes a weight; this takes 30. The state stays where megatron-core has it, so checkpoints
are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from hpc.kernels.adamw_ema import adamw_ema
from hpc.train.settings.optimizer import Optimizer


@torch.no_grad()
def fused_step(one: DistributedOptimizer, settings: Optimizer, norm: float, kernels: str) -> None:
    """After `prepare_grads`. one: of a model in bfloat16. norm: of all gradients, finite."""
    one.init_state_fn(one.optimizer)
    scale = torch.tensor(min(1.0, settings.clip / (norm + 1e-6)))  # megatron-core's clip_grad_by_total_norm_fp32
    groups = zip(one.optimizer.param_groups, one.model_float16_groups, one.shard_fp32_from_float16_groups, strict=True)
    for group, models, mains in groups:
        if not mains:
            continue
        state = [one.optimizer.state[main] for main in mains]
        adamw_ema(
            [main.data for main in mains], [main.grad for main in mains], [s["exp_avg"] for s in state],
            [s["exp_avg_sq"] for s in state], lr=group["lr"], betas=settings.betas, eps=settings.eps,
            weight_decay=group["weight_decay"], step=_counted(one.optimizer, group, state),
            copies=[_copy(one, model) for model in models], grad_scale=scale.to(mains[0].device), kernels=kernels,
        )  # fmt: skip
    for chunk in one.model_chunks:
        chunk.start_param_sync()


def _counted(optimizer: torch.optim.Optimizer, group: dict[str, Any], state: list[dict[str, Any]]) -> int:
    """The number of this step, from 1, written down where the optimizer has it: FusedAdam in the group, torch's with
    each parameter."""
    if not isinstance(optimizer, torch.optim.Adam):
        group["step"] = int(group.get("step", 0)) + 1
        return group["step"]
    for one in state:
        one["step"] = one.get("step", torch.tensor(0.0)) + 1
    return int(state[0]["step"])


def _copy(one: DistributedOptimizer, model: Tensor) -> Tensor:
    """This rank's part of a bfloat16 parameter, in the buffer that is gathered."""
    place = one._get_model_param_range_map(model)["gbuf_world_in_bucket"]
    buffer, _, bucket = one.model_param_gbuf_map[model]
    return one.buffers[buffer].buckets[bucket].param_data.view(-1)[place.start : place.end]
