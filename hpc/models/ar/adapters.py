"""Low-rank adapters around megatron-core's parallel linears: hpc.models.lora's arithmetic, split as the layers are.

    adapt(model, preset, rank=32, alpha=32.0)      all linear layers of the decoder; nothing else is trained then

Each published tensor has its own A and B (wq, wk and wv of linear_qkv), as PEFT would give them to the published model.
Of layers that tensor-parallel ranks split by rows each rank has its rows of B and all of A; of those that are split by
columns its columns of A and all of B. Between A and B tokens have `rank` numbers each, and those alone are exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from hpc.models.ar import keys
from hpc.models.ar.presets import Preset


class Adapted(nn.Module):
    """A parallel linear with adapters, called as the linear alone is."""

    def __init__(self, layer: nn.Module, rule: keys.Rule, groups: int, rank: int, scale: float, tp: Any) -> None:
        """rule: how its weight is made of published ones. groups: of heads, on this rank. tp: of the ranks that split
        it."""
        super().__init__()
        self.base_layer, self.scale, self.tp, self.by_rows = layer, scale, tp, rule.axis == 0
        self.groups = groups if rule.heads else 1
        self.tokens_split = bool(layer.sequence_parallel) and tp.size() > 1
        weight: Any = layer.weight
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for source, (outside, inside) in zip(rule.sources, rule.shapes, strict=True):
            word = source.split(".")[-2]
            if self.by_rows:
                outside //= tp.size()
            else:
                inside //= tp.size()
            new = {"device": weight.device, "dtype": weight.dtype}
            self.lora_A[word] = nn.Parameter(torch.empty(rank, inside, **new))
            self.lora_B[word] = nn.Parameter(torch.empty(outside, rank, **new))
            # where tokens are split, each rank has a part of the gradient of what all of them have
            self.lora_A[word].sequence_parallel = self.by_rows and self.tokens_split  # type: ignore[attr-defined]
            self.lora_B[word].sequence_parallel = not self.by_rows and self.tokens_split  # type: ignore[attr-defined]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        out, bias = self.base_layer(x, *args, **kwargs)
        low = F.linear(x, torch.cat(list(self.lora_A.values()))) * self.scale
        if self.tp.size() > 1 and self.by_rows:
            to_all = tensor_parallel.gather_from_sequence_parallel_region if self.tokens_split else (
                tensor_parallel.copy_to_tensor_model_parallel_region)  # fmt: skip
            low = to_all(low, group=self.tp)
        elif self.tp.size() > 1:
            summed = tensor_parallel.reduce_scatter_to_sequence_parallel_region if self.tokens_split else (
                tensor_parallel.reduce_from_tensor_model_parallel_region)  # fmt: skip
            low = summed(low, group=self.tp)
        parts = [F.linear(one, b).unflatten(-1, (self.groups, -1))
                 for one, b in zip(low.chunk(len(self.lora_B), -1), self.lora_B.values(), strict=True)]  # fmt: skip
        return out + torch.cat(parts, -1).flatten(-2), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """megatron-core calls it. Adapters are called by the names of `keys.adapters`."""
        made = self.base_layer.sharded_state_dict(f"{prefix}base_layer.", sharded_offsets, metadata)  # type: ignore
        for name, axis, some in (("lora_A", 1, self.lora_A), ("lora_B", 0, self.lora_B)):
            split = dict.fromkeys(some, axis) if self.by_rows == (axis == 0) else {}
            made |= make_sharded_tensors_for_checkpoint(
                dict(some), f"{prefix}{name}.", split, sharded_offsets, tp_group=self.tp,
                dp_cp_group=metadata["dp_cp_group"],
            )  # fmt: skip
        return made


def adapt(model: nn.Module, preset: Preset, rank: int, alpha: float) -> None:
    """Puts adapters, without values, into a stage of a model (hpc.models.ar.model), in place; all else but an MLP for
    actions is frozen."""
    tp: Any = model.pg_collection.tp  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("action_mlp."))
    table = {name.removesuffix(".weight"): rule for name, rule in keys.rules(preset).items()}
    for name, layer in list(linears(model)):
        inside, _, last = name.rpartition(".")
        number = re.sub(r"(?<=layers\.)\d+", "0", name)  # layers are alike
        rule = table[number]
        adapted = Adapted(layer, rule, preset.kv_heads // tp.size(), rank, alpha / rank, tp)
        setattr(model.get_submodule(inside), last, adapted)


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name.startswith("decoder.layers.") and name.rpartition(".")[2].startswith("linear_"):
            yield name, module
