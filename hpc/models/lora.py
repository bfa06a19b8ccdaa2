"""Low-rank adapters: W x + (alpha / rank) B A x, of which A and B alone are trained (Hu et al., "LoRA", 2021,
https://arxiv.org/abs/2106.09685). With the names that PEFT gives them, as the published experiments have:

    blocks.0.self_attn.q_proj.base_layer.weight           [out, in]
    blocks.0.self_attn.q_proj.lora_A.default.weight       [rank, in]
    blocks.0.self_attn.q_proj.lora_B.default.weight       [out, rank]

cosmos_predict2 661da47: models/video2world_model.py
cosmos_predict2.5 50369b8: models/text2world_model_rectified_flow.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "output_proj", "mlp.layer1", "mlp.layer2")
"""Ends of names: all large layers of a DiT's blocks."""
ADAPTER = re.compile(r"\.lora_[AB]\.default\.weight$")


class Adapted(nn.Module):
    """A linear layer, of whichever kind, with an adapter. Starts as the layer alone: B is zeros."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight: Any = layer.weight
        outside, inside = weight.shape
        kind = {"device": weight.device, "dtype": torch.float32}
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inside, rank, bias=False, **kind)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outside, bias=False, **kind)})
        self.scale = alpha / rank
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A["default"].weight.to(x.dtype), self.lora_B["default"].weight.to(x.dtype)
        return self.base_layer(x) + nn.functional.linear(nn.functional.linear(x, a), b) * self.scale


def adapt(
    model: nn.Module,
    rank: int = 32,
    alpha: float = 32.0,
    targets: Sequence[str] = TARGETS,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Puts adapters into a model with its weights, in place; all else is frozen. Returns the names of the layers that
    have one. Raises ValueError where a target is no layer's."""
    if rank < 1:
        raise ValueError(f"rank: {rank} must be 1 or more")
    linear = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    found = [name for name in linear if f".{name}".endswith(tuple(f".{target}" for target in targets))]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in found):
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(f"targets: no layer is called {target}; there are {', '.join(ends)}")
    model.requires_grad_(False)
    for name in found:
        inside, _, last = name.rpartition(".")
        adapted = Adapted(model.get_submodule(name), rank, alpha)
        a = adapted.lora_A["default"].weight
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        setattr(model.get_submodule(inside), last, adapted)
    return found


def adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a state alone: what is trained, and what a checkpoint needs beside the model's own file."""
    return {name: value for name, value in state.items() if ADAPTER.search(name)}


def merged(state: Mapping[str, Any], scale: float = 1.0) -> dict[str, Any]:
    """Weights with their adapters added, by the names of a model without. scale: alpha / rank, which a file does not
    say; 1 in the published experiments. Raises ValueError for an adapter without its layer, or of another model's."""
    whole: dict[str, Any] = {}
    for name, value in state.items():
        if not ADAPTER.search(name):
            whole[re.sub(r"\.base_layer\.(?=[^.]+$)", ".", name)] = value
    for name, a in adapters(state).items():
        if ".lora_A." in name:
            b, plain = state.get(name.replace(".lora_A.", ".lora_B.")), ADAPTER.sub(".weight", name)
            if b is None or plain not in whole:
                raise ValueError(f"{name}: its lora_B or its layer's own weight is not there")
            weight = whole[plain]
            if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
                layer = " x ".join(map(str, weight.shape))
                raise ValueError(f"{name}: an adapter of {b.shape[0]} x {a.shape[1]} (ranks {a.shape[0]}, {b.shape[1]})"
                                 f" for a layer of {layer}: it is another model's: take the weights that it was "
                                 "trained with")  # fmt: skip
            whole[plain] = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
    return whole
