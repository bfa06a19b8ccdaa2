"""The weights of autoregressive models under several names: the published model.pt, ours on megatron-core, NeMo's.

    fill(model, preset, Published(path))  every parameter of this rank, cut out of the whole tensors
    published(preset, whole.__getitem__)  back: ours, whole, as (name, tensor) of model.pt

One table says for each parameter of megatron-core which published tensors it is made of and how (NVIDIA/Cosmos 71f19b0:
autoregressive/nemo/cosmos.py and cosmos_video2world.py, the importers; their order of rows is in the golden arrays):
q, k and v of each group of queries side by side in linear_qkv, k and v in the context's linear_kv, w1 above w3 in
linear_fc1. Adapters are of the published tensors one by one, by the names of hpc.models.lora. Accounting is strict:
every name is used and every parameter filled, or an error lists both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpc.models import headers
from hpc.models.ar.presets import Preset
from hpc.models.hub import shorten

NOT_WEIGHTS = "_extra_state"  # of transformer-engine; upstream leaves them out too
ACTION = "model.action_mlp."
"""Of the names that models for actions have besides. Nobody published any; NeMo's is "module.action_mlp."."""
LOCAL_NAMES = {
    ".input_layernorm.weight": ".self_attention.linear_qkv.layer_norm_weight",
    ".pre_mlp_layernorm.weight": ".mlp.linear_fc1.layer_norm_weight",
}
"""Parameters of the local layers -> of transformer-engine's, by which the table goes."""


class Rule(NamedTuple):
    """How one parameter of megatron-core is made of published tensors."""

    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of the sources."""
    heads: tuple[int, ...] = ()
    """How many blocks of rows each source gives to a group, for those that are interleaved: 4, 1, 1 for q, k, v."""
    axis: int | None = None
    """Which tensor-parallel ranks split; None: each has all of it."""

    def joined(self, tensors: list[Tensor], groups: int) -> Tensor:
        """The whole parameter."""
        if self.heads:
            parts = [t.unflatten(0, (groups, -1)) for t in tensors]
            return torch.cat(parts, 1).flatten(0, 1)
        return torch.cat(tensors)

    def parted(self, whole: Tensor, groups: int) -> list[Tensor]:
        """The sources again."""
        if self.heads:
            rows = [shape[0] // groups for shape in self.shapes]
            return [t.flatten(0, 1) for t in whole.unflatten(0, (groups, -1)).split(rows, 1)]
        return list(whole.split([shape[0] for shape in self.shapes]))

    def cut(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """A tensor-parallel rank's part. Of w1 above w3 each rank has its rows of both."""
        if self.axis is None or ranks == 1:
            return whole
        if len(self.sources) > 1 and not self.heads:
            return torch.cat([t.chunk(ranks)[rank] for t in whole.split([shape[0] for shape in self.shapes])])
        return whole.chunk(ranks, self.axis)[rank]

    def together(self, parts: list[Tensor]) -> Tensor:
        """The whole again, of the parts of all tensor-parallel ranks."""
        if self.axis is None or len(parts) == 1:
            return parts[0]
        if len(self.sources) > 1 and not self.heads:
            return torch.cat([t.chunk(len(self.sources))[n] for n in range(len(self.sources)) for t in parts])
        return torch.cat(parts, self.axis)


def rules(preset: Preset) -> dict[str, Rule]:
    """Name of a parameter, with the layer's number in the whole model -> how it is made."""
    dim, q, kv = preset.dim, preset.heads * preset.head_dim, preset.kv_heads * preset.head_dim
    norm, head = ((dim,),), ((preset.head_dim,),)
    each = preset.heads // preset.kv_heads
    made = {"embedding.word_embeddings.weight": Rule(("model.tok_embeddings.weight",), ((preset.vocab, dim),), axis=0)}
    for i in range(preset.layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        names = lambda *words, prefix=theirs: tuple(f"{prefix}{word}.weight" for word in words)
        attention = names("attention.wq", "attention.wk", "attention.wv")
        made |= {
            f"{ours}self_attention.linear_qkv.layer_norm_weight": Rule(names("attention_norm"), norm),
            f"{ours}self_attention.linear_qkv.weight": Rule(
                attention, ((q, dim), (kv, dim), (kv, dim)), (each, 1, 1), axis=0
            ),
            f"{ours}self_attention.q_layernorm.weight": Rule(names("attention.q_norm"), head),
            f"{ours}self_attention.k_layernorm.weight": Rule(names("attention.k_norm"), head),
            f"{ours}self_attention.linear_proj.weight": Rule(names("attention.wo"), ((dim, q),), axis=1),
            f"{ours}mlp.linear_fc1.layer_norm_weight": Rule(names("ffn_norm"), norm),
            f"{ours}mlp.linear_fc1.weight": Rule(
                names("feed_forward.w1", "feed_forward.w3"), ((preset.ffn, dim),) * 2, axis=0
            ),
            f"{ours}mlp.linear_fc2.weight": Rule(names("feed_forward.w2"), ((dim, preset.ffn),), axis=1),
        }
        if preset.context_dim is not None:
            cross = f"{ours}cross_attention."
            made |= {
                f"{ours}pre_cross_attn_layernorm.weight": Rule(names("cross_attention_norm"), norm),
                f"{cross}linear_q.weight": Rule(names("cross_attention.wq"), ((q, dim),), axis=0),
                f"{cross}linear_kv.weight": Rule(
                    names("cross_attention.wk", "cross_attention.wv"), ((kv, preset.context_dim),) * 2, (1, 1), axis=0
                ),
                f"{cross}q_layernorm.weight": Rule(names("cross_attention.q_norm"), head),
                f"{cross}k_layernorm.weight": Rule(names("cross_attention.k_norm"), head),
                f"{cross}linear_proj.weight": Rule(names("cross_attention.wo"), ((dim, q),), axis=1),
            }
    made["decoder.final_layernorm.weight"] = Rule(("model.norm.weight",), norm)
    made["output_layer.weight"] = Rule(("model.output.weight",), ((preset.classes, dim),), axis=0)
    if preset.action_dim is not None and preset.context_dim is not None:
        sizes = (preset.action_dim, preset.context_dim // 4, preset.context_dim)
        for place, inside, outside in ((0, *sizes[:2]), (2, *sizes[1:])):
            for what, shape in (("weight", (outside, inside)), ("bias", (outside,))):
                made[f"action_mlp.{place}.{what}"] = Rule((f"{ACTION}{place}.{what}",), (shape,))
    return made


def adapters(preset: Preset, rank: int) -> dict[str, Rule]:
    """The same of adapters to all linear layers of the decoder: each published tensor has its own A and B. Of layers
    that tensor-parallel ranks split by rows they split B, of those by columns A."""
    made = {}
    for name, rule in rules(preset).items():
        if not name.startswith("decoder.layers.") or rule.axis is None:
            continue
        layer = name.removesuffix(".weight")
        for source, (outside, inside) in zip(rule.sources, rule.shapes, strict=True):
            source = source.removesuffix(".weight")
            for letter, shape, split in (("A", (rank, inside), 1), ("B", (outside, rank), 0)):
                theirs = (f"{source}.lora_{letter}.default.weight",)
                axis = split if rule.axis == split else None
                made[f"{layer}.lora_{letter}.{source.rpartition('.')[2]}"] = Rule(theirs, (shape,), axis=axis)
    return made


def trained(preset: Preset, rank: int) -> dict[str, Rule]:
    """What is trained with adapters of this rank, 0 for none: they, and an MLP for actions; else everything."""
    if not rank:
        return rules(preset)
    return {name: rule for name, rule in rules(preset).items() if name.startswith("action_mlp.")} | adapters(
        preset, rank
    )


def parameters(model: nn.Module, preset: Preset) -> dict[str, nn.Parameter]:
    """The parameters of a pipeline stage, by the names of the table: with the layers' numbers in the whole model."""
    layers = model.decoder.layers  # type: ignore[union-attr]
    numbers = [layer.layer_number - 1 for layer in layers]  # type: ignore[union-attr]
    found = {}
    for name, value in model.named_parameters():
        for local, fused in LOCAL_NAMES.items():
            name = name.replace(local, fused).replace(".base_layer.", ".")
        name = re.sub(r"layers\.(\d+)\.", lambda m: f"layers.{numbers[int(m[1])]}.", name)
        found[name] = value
    return found


def fill(
    model: nn.Module, preset: Preset, source: Mapping[str, Tensor], rank: int = 0, ranks: int = 1, lora_rank: int = 0
) -> None:
    """Put published weights into this rank's part of a model: rank of `ranks` that are tensor-parallel; pipeline stages
    take the layers they have. Tensors are converted to the parameters' types. lora_rank: of its adapters, 0 for none.
    Raises ValueError naming what is missing, left over or of another shape."""
    table, mine = rules(preset) | trained(preset, lora_rank), parameters(model, preset)
    account(table, source, f"the published weights of {preset.layers} layers")
    if unknown := sorted(mine.keys() - table.keys()):
        raise ValueError(f"the model has parameters that no published tensor fills: {shorten(unknown)}")
    with torch.no_grad():
        for name, parameter in mine.items():
            rule = table[name]
            whole = rule.joined([source[one] for one in rule.sources], preset.kv_heads)
            part = rule.cut(whole, rank, ranks)
            if part.shape != parameter.shape:
                raise ValueError(f"{name}: rank {rank} of {ranks} has {tuple(parameter.shape)}, of the published "
                                 f"{tuple(whole.shape)} its part is {tuple(part.shape)}")  # fmt: skip
            parameter.copy_(part)


def published(preset: Preset, whole: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of model.pt, from whole parameters by the names of the table."""
    for name, rule in rules(preset).items():
        yield from zip(rule.sources, rule.parted(whole(name), preset.kv_heads), strict=True)


def account(table: Mapping[str, Rule], source: Mapping[str, Tensor], what: str) -> None:
    """Raises ValueError unless the source has exactly the tensors of the table, in their shapes."""
    expected = {name: shape for rule in table.values() for name, shape in zip(rule.sources, rule.shapes, strict=True)}
    there = [name for name in source if NOT_WEIGHTS not in name]
    wrong = {
        "missing": sorted(expected.keys() - set(there)),
        "left over": sorted(set(there) - expected.keys()),
        "of another shape": [
            f"{name} {tuple(source[name].shape)} for {shape}"
            for name, shape in expected.items() if name in source and tuple(source[name].shape) != shape
        ],
    }  # fmt: skip
    if any(wrong.values()):
        words = "; ".join(f"{why}: {shorten(names) or 'nothing'}" for why, names in wrong.items())
        raise ValueError(f"these are not {what}: {words}")


class Initial(Mapping[str, Tensor]):
    """Weights to start from, made one at a time as if they were published: of a seed and a name, so that every layout
    starts from the same ones. Depth-scaled truncated normals, as upstream's trainer has it (cosmos_predict1 4ed35fa:
    autoregressive/training/networks/transformer.py, init_weights, and training/modules/attention.py); adapters as PEFT
    has them, and the MLP of actions as torch does."""

    def __init__(
        self, preset: Preset, generator: Callable[[str], torch.Generator], lora_rank: int = 0,
        known: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """generator(name): freshly seeded for a tensor, on the device where it shall be made. lora_rank: of adapters,
        0 for none. known: weights that are there; the others are made."""
        self.generator, self.known = generator, known or {}
        self.dim = preset.dim
        table = rules(preset) | trained(preset, lora_rank)
        self.shapes = {n: s for rule in table.values() for n, s in zip(rule.sources, rule.shapes, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        if name in self.known:
            return self.known[name]
        shape = self.shapes[name]
        if name.startswith(ACTION) or ".lora_A." in name:
            bound = self.shapes[name.removesuffix("bias") + "weight" if name.endswith("bias") else name][1] ** -0.5
            generator = self.generator(name)
            return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)
        if ".lora_B." in name:
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        generator = self.generator(name)
        out = torch.empty(shape, device=generator.device)
        if name == "model.tok_embeddings.weight":
            return out.normal_(generator=generator)
        std, bound = 0.02, 2.0
        if name == "model.output.weight":
            std = self.dim**-0.5
            bound = 3 * std
        elif not name.endswith(("wq.weight", "wk.weight", "wv.weight", "w1.weight")):
            std = 0.02 / (2 * (int(name.split(".")[2]) + 1)) ** 0.5
        return nn.init.trunc_normal_(out, std=std, a=-bound, b=bound, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Published(Mapping[str, Tensor]):
    """The tensors of a model.pt, or of a .safetensors file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that holds something else, or a part of it."""
        self.path = path
        self._pt: dict[str, Tensor] | None = None
        try:
            if path.suffix == ".safetensors":
                from safetensors import safe_open

                self._file: Any = safe_open(str(path), "pt")
                self._names = dict.fromkeys(self._file.keys())
            else:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                self._pt = found["model"] if isinstance(found.get("model"), dict) else found
                self._names = dict.fromkeys(self._pt)
        except FileNotFoundError:
            raise
        except Exception as error:  # of torch, pickle, safetensors
            said = (str(error) or type(error).__name__).splitlines()[0][:200]
            try:
                headers.shapes(path)
            except (OSError, ValueError) as told:  # in fewer words than torch's
                said = str(told)
            raise ValueError(f"{path}: this is no whole file of weights, as torch.save or safetensors leave it: {said}"
                             ) from error  # fmt: skip

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._pt[name] if self._pt is not None else self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
