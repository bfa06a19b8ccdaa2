"""The autoregressive model as it makes videos: keys and values in slots, a token of each video a step.

    model = Decoder(preset, keys.Published(path), "cuda", torch.bfloat16)
    made = Generator(model, batch=8, temperature=1.0, top_p=0.8)([Prompt(ids, seed=1), ...])  # int64 [videos, ids]

The arithmetic is hpc.models.ar.model's, in plain torch, since a step is one token of each video: nothing of
megatron-core is needed. Keys and values lie in pieces, pieces first, so that the first so many of them are one stretch
of memory, and a step reads no more than what there is so far; a GPU records the step once for each such length and
repeats it (hpc.models.decode tells why). A row's numbers do not depend on the other rows: prompts are read one at a
time, and steps have always `batch` rows, with nothing in those that no video needs.

Ranks that are tensor-parallel have heads, feed-forward and classes in parts, as in training, and all have the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hpc.models.ar import keys
from hpc.models.ar.positions import absolute, rope_angles
from hpc.models.ar.presets import Preset
from hpc.models.decode import PIECE, product, recorded

GROW = 8  # pieces that a step reads more of at a time: 2,048 tokens, so 7 graphs for a whole video of 12,800
ONE = 1 << 40  # probabilities as whole numbers: their sums are the same in whatever order a GPU adds


class Layer(NamedTuple):
    """A rank's part of a layer's weights; [out, in]."""

    norm: Tensor
    qkv: Tensor
    qk_norm: Tensor
    """float32 [heads of q and k, head_dim]"""
    out: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor
    cross_norm: Tensor | None = None
    cross_q: Tensor | None = None
    cross_kv: Tensor | None = None
    cross_q_norm: Tensor | None = None
    cross_k_norm: Tensor | None = None
    cross_out: Tensor | None = None


class Prompt(NamedTuple):
    """What a video begins with."""

    ids_N: Tensor
    """int64: of its first latent frames, in raster order; none where the model has a context."""
    seed: int = 0
    context_CD: Tensor | None = None
    """A prompt's embedding, for video2world models."""
    action_A: Tensor | None = None
    """What is done, for models that are given an action in its place."""


class Decoder:
    """The weights, of one rank, and what they compute."""

    def __init__(
        self, preset: Preset, source: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        """source: under the published names. group: of the tensor-parallel ranks. Raises ValueError naming what is
        missing, left over or of another shape, and where ranks cannot have equal parts."""
        self.preset, self.device, self.dtype, self.group = preset, torch.device(device), dtype, group
        self.ranks, self.rank = (group.size(), group.rank()) if group is not None else (1, 0)
        if preset.kv_heads % self.ranks or preset.ffn % self.ranks or preset.classes % self.ranks:
            raise ValueError(f"{self.ranks} ranks: {preset.kv_heads} heads of keys, {preset.ffn} columns of the "
                             f"feed-forward and {preset.classes} classes must have equal parts")  # fmt: skip
        keys.account(keys.rules(preset), source, f"the published weights of {preset.layers} layers")
        self.heads, self.groups = preset.heads // self.ranks, preset.kv_heads // self.ranks

        def taken(*names: str, split: int | None = 0) -> Tensor:
            """Several are stacked; split: the axis that ranks share."""
            parts = [source[f"model.{name}.weight"] for name in names]
            if split is not None and self.ranks > 1:
                parts = [part.chunk(self.ranks, split)[self.rank] for part in parts]
            return torch.cat([part.to(self.device, dtype) for part in parts]).contiguous()

        self.embedding = taken("tok_embeddings", split=None)
        self.norm = taken("norm", split=None)
        self.output = taken("output")
        self.layers = []
        for i in range(preset.layers):
            at, cross = f"layers.{i}.attention.", f"layers.{i}.cross_attention"
            layer = Layer(
                taken(f"layers.{i}.attention_norm", split=None), taken(f"{at}wq", f"{at}wk", f"{at}wv"),
                torch.cat([source[f"model.{at}{one}_norm.weight"].to(self.device).float().expand(count, -1)
                           for one, count in (("q", self.heads), ("k", self.groups))]), taken(f"{at}wo", split=1),
                taken(f"layers.{i}.ffn_norm", split=None),
                taken(f"layers.{i}.feed_forward.w1", f"layers.{i}.feed_forward.w3"),
                taken(f"layers.{i}.feed_forward.w2", split=1),
            )  # fmt: skip
            if preset.context_dim is not None:
                layer = layer._replace(
                    cross_norm=taken(f"{cross}_norm", split=None), cross_q=taken(f"{cross}.wq"),
                    cross_kv=taken(f"{cross}.wk", f"{cross}.wv"), cross_q_norm=taken(f"{cross}.q_norm", split=None),
                    cross_k_norm=taken(f"{cross}.k_norm", split=None), cross_out=taken(f"{cross}.wo", split=1),
                )  # fmt: skip
            self.layers.append(layer)
        self.mlp = [source[f"{keys.ACTION}{place}.{what}"].to(self.device, dtype)
                    for place in (0, 2) if preset.action_dim is not None for what in ("weight", "bias")]  # fmt: skip
        angles = rope_angles(preset).to(self.device)
        signs = torch.ones(preset.head_dim, device=self.device)
        signs[: preset.head_dim // 2] = -1
        self.cos, self.sin = angles.cos(), angles.sin() * signs
        self.absolute = absolute(preset).to(self.device, dtype) if preset.context_dim is not None else None

    @property
    def bytes(self) -> int:
        """Of the weights that a step reads: all but the embedding, of which it takes a row for each video."""
        found = [t for layer in self.layers for t in layer if t is not None]
        return sum(t.nbytes for t in (*found, self.norm, self.output))

    # Parts of a layer

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.preset.norm_eps)

    def summed(self, x: Tensor) -> Tensor:
        """Of all ranks' parts."""
        if self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x

    def qkv(self, layer: Layer, x_BSD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_BSHd, k_BSGd, v_BSGd; q and k normed and turned, both at once. cos, sin: [S, 1, d]."""
        dim = self.preset.head_dim
        all_BSHd = F.linear(self.normed(x_BSD, layer.norm), layer.qkv).unflatten(-1, (-1, dim))
        qk, v = all_BSHd.split([self.heads + self.groups, self.groups], -2)
        qk = F.rms_norm(qk.float(), (dim,), None, self.preset.norm_eps) * layer.qk_norm
        qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin).to(self.dtype)  # halves change places
        return *qk.split([self.heads, self.groups], -2), v

    def ffn(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = F.linear(self.normed(x, layer.ffn_norm), layer.gate_up).chunk(2, -1)
        return self.summed(F.linear(F.silu(gate) * up, layer.down))

    def logits(self, x_BD: Tensor) -> Tensor:
        """float32 [B, classes], on every rank."""
        mine = F.linear(self.normed(x_BD, self.norm), self.output)
        if self.group is not None:
            parts = mine.new_empty(self.ranks * len(mine), mine.shape[1])
            dist.all_gather_into_tensor(parts, mine, group=self.group)
            mine = parts.unflatten(0, (self.ranks, -1)).transpose(0, 1).flatten(1)
        return mine.float()

    def told(self, one: Prompt) -> Tensor | None:
        """[C, D]: what a prompt's video attends to. Raises ValueError for a prompt of another kind of model."""
        p = self.preset
        if (one.context_CD is None) != (p.context_dim is None or p.action_dim is not None):
            raise ValueError("video2world models need a prompt's embedding, and no other takes one")
        if (one.action_A is None) != (p.action_dim is None):
            raise ValueError("models for actions need an action, and no other takes one")
        if one.action_A is None:
            return one.context_CD
        inside = F.linear(one.action_A[None].to(self.device, self.dtype), *self.mlp[:2])
        return F.linear(inside.relu(), *self.mlp[2:])

    def context(self, layer: Layer, context_BCD: Tensor) -> tuple[Tensor, Tensor]:
        """k_BCGd, v_BCGd of a prompt's embedding."""
        assert layer.cross_kv is not None and layer.cross_k_norm is not None
        k, v = F.linear(context_BCD, layer.cross_kv).unflatten(-1, (-1, self.preset.head_dim)).chunk(2, -2)
        return self.normed(k, layer.cross_k_norm), v

    # All tokens at once

    @torch.inference_mode()
    def read(
        self, tokens_BS: Tensor, context_BCD: Tensor | None = None,
        keep: Callable[[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None], None] = lambda *_: None,
    ) -> Tensor:  # fmt: skip
        """x_BSD behind the last layer. keep(layer, (k, v), (k, v) of the context): is given what a layer attends to."""
        count = tokens_BS.shape[1]
        x = self.embedding[tokens_BS]
        cos, sin = self.cos[:count, None], self.sin[:count, None]
        across = lambda q, k, v, causal: F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal, enable_gqa=self.heads != self.groups
        ).transpose(1, 2).flatten(2)  # fmt: skip
        if context_BCD is not None:
            context_BCD = context_BCD.to(self.device, self.dtype)
        for i, layer in enumerate(self.layers):
            if self.absolute is not None:
                x = x + self.absolute[:count]
            q, k, v = self.qkv(layer, x, cos, sin)
            x = x + self.summed(F.linear(across(q, k, v, True), layer.out))
            of_context = None
            if context_BCD is not None:
                of_context = self.context(layer, context_BCD)
                x = x + self.cross(layer, x, lambda q, of=of_context: across(q, *of, False))
            x = x + self.ffn(layer, x)
            keep(i, (k, v), of_context)
        return x

    def cross(self, layer: Layer, x_BSD: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """attend(q_BSHd): to the context."""
        assert layer.cross_norm is not None and layer.cross_q is not None
        assert layer.cross_q_norm is not None and layer.cross_out is not None
        q = F.linear(self.normed(x_BSD, layer.cross_norm), layer.cross_q).unflatten(-1, (-1, self.preset.head_dim))
        return self.summed(F.linear(attend(self.normed(q, layer.cross_q_norm)), layer.cross_out))


class Slots:
    """Places for keys and values of a batch in one layer: [pieces, batch, groups, PIECE, head_dim] each."""

    def __init__(self, places: int, batch: int, model: Decoder) -> None:
        shape = (-(-places // PIECE), batch, model.groups, PIECE, model.preset.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in range(2))

    def put(self, row: int, k_SGd: Tensor, v_SGd: Tensor) -> None:
        """The first ones of a row."""
        pieces = -(-len(k_SGd) // PIECE)
        for slots, new in ((self.keys, k_SGd), (self.values, v_SGd)):
            padded = F.pad(new, (0, 0, 0, 0, 0, pieces * PIECE - len(new)))
            slots[:pieces, row] = padded.unflatten(0, (pieces, PIECE)).transpose(1, 2)

    def add(self, place: Tensor, k_BGd: Tensor, v_BGd: Tensor) -> None:
        """At a place [1] of all rows."""
        piece, within = place // PIECE, place % PIECE
        self.keys[piece, :, :, within] = k_BGd[None]
        self.values[piece, :, :, within] = v_BGd[None]


def attend(q_BHd: Tensor, keys: Tensor, values: Tensor, seen_PL: Tensor) -> Tensor:
    """softmax(q k^T) v [B, H * d] of one query a row, float32 sums: hpc.models.decode.attend, for slots with the pieces
    first. seen_PL: bool, which places count."""
    pieces, batch, groups, _, size = keys.shape
    q = q_BHd.view(1, batch, groups, -1, size).expand(pieces, -1, -1, -1, -1)
    scores = product(q.flatten(0, 2), keys.flatten(0, 2).transpose(1, 2)).unflatten(0, (pieces, batch, groups))
    scores = (scores * size**-0.5).masked_fill(~seen_PL[:, None, None, None], float("-inf"))
    parts = (scores - scores.amax((0, 4), keepdim=True)).exp()
    out = product(parts.to(values.dtype).flatten(0, 2), values.flatten(0, 2)).unflatten(0, (pieces, batch, groups))
    return (out.sum(0) / parts.sum((0, 4))[..., None]).to(values.dtype).view(batch, -1)


def choose(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """An id of each row. temperature 0: the likeliest. Else one of the likeliest that together have `top_p` of the
    probability (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020), by where the row's number from
    0 to 1 (float64) falls among their probabilities, the likeliest first; of equal ones the smallest id first."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    likely, ids = (logits_BV / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights = (likely * ONE).long()
    sums = weights.cumsum(-1)
    last = ((sums - weights) < int(top_p * ONE)).sum(-1, keepdim=True).clamp(min=1) - 1
    target = (uniform_B[:, None] * sums.gather(-1, last).double()).long()
    return ids.gather(-1, (sums <= target).sum(-1, keepdim=True).minimum(last))[:, 0]


class Generator:
    """Slots for a batch of videos, and the step that adds a token to each."""

    def __init__(
        self, model: Decoder, batch: int, temperature: float = 0.0, top_p: float = 1.0, classes: int | None = None,
        record: bool = True,
    ) -> None:  # fmt: skip
        """classes: ids from 0 to classes - 1 are chosen from; None: all that the model knows. record: steps as CUDA
        graphs, on a GPU."""
        p, self.model, self.batch = model.preset, model, batch
        self.temperature, self.top_p, self.classes = temperature, top_p, classes or p.classes
        self.record = record and model.device.type == "cuda"
        self.inputs = p.first + p.video_tokens - 1  # the last id is chosen, and nothing follows it
        self.slots = [Slots(self.inputs, batch, model) for _ in model.layers]
        self.contexts: list[Slots] = []
        new = lambda *shape, dtype=torch.long: torch.zeros(shape, dtype=dtype, device=model.device)
        self.ids, self.uniform = new(batch, p.video_tokens), new(batch, p.video_tokens, dtype=torch.float64)
        self.token, self.place = new(batch), new(1)
        self.finite = new(1, dtype=torch.bool)
        self.steps: dict[int, Callable[[], None]] = {}

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], check: Callable[[], None] = lambda: None) -> Tensor:
        """int64 [prompts, video_tokens], on the CPU, what was given included. check(): is called between steps. All
        prompts are given as many ids. Raises ValueError where the model gives numbers that are none, or is given
        nothing to begin with."""
        given = len(prompts[0].ids_N)
        if len(prompts) > self.batch or any(len(one.ids_N) != given for one in prompts):
            raise ValueError(f"{len(prompts)} prompts of {sorted({len(one.ids_N) for one in prompts})} ids: at most "
                             f"{self.batch} that are as long go together")  # fmt: skip
        self.begin(prompts, given)
        for known in range(given + 1, self.model.preset.video_tokens):
            check()
            self.step(self.model.preset.first + known)
        if not bool(self.finite):
            raise ValueError("the model gave numbers that are none: are these its weights?")
        return self.ids[: len(prompts)].to("cpu", copy=True)

    def begin(self, prompts: Sequence[Prompt], given: int) -> None:
        """Reads the prompts, one by one, and chooses the first id of each."""
        p, model = self.model.preset, self.model
        before = [p.bov] * p.first
        if given + len(before) == 0:
            raise ValueError("a model without a context begins with a latent frame at least: give a picture or a video")
        self.place.fill_(len(before) + given - 1)
        self.finite.fill_(True)
        last = torch.zeros(self.batch, p.dim, dtype=model.dtype, device=model.device)
        for row, one in enumerate(prompts):
            context_CD = model.told(one)
            draws = np.random.Generator(np.random.Philox(key=one.seed)).random(p.video_tokens)
            self.uniform[row] = torch.from_numpy(draws)
            self.ids[row, :given] = one.ids_N.to(model.device)
            tokens = torch.cat([torch.tensor(before, dtype=torch.long), one.ids_N.long().cpu()])[None].to(model.device)
            context = None if context_CD is None else context_CD[None]
            if context is not None and not self.contexts:
                self.contexts = [Slots(context.shape[1], self.batch, model) for _ in model.layers]
                places = torch.arange(len(self.contexts[0].keys) * PIECE, device=model.device)
                self.words = (places < context.shape[1]).view(-1, PIECE)
            keep = lambda i, kv, of_context, row=row: self.keep(i, row, kv, of_context)
            last[row] = model.read(tokens, context, keep)[0, -1]
        self.say(last)

    def keep(
        self, layer: int, row: int, kv: tuple[Tensor, Tensor], of_context: tuple[Tensor, Tensor] | None
    ) -> None:  # fmt: skip
        self.slots[layer].put(row, kv[0][0], kv[1][0])
        if of_context is not None:
            self.contexts[layer].put(row, of_context[0][0], of_context[1][0])

    def say(self, x_BD: Tensor) -> None:
        """Chooses what follows the token at `place`."""
        logits = self.model.logits(x_BD)[:, : self.classes]
        self.finite.logical_and_(logits.isfinite().all())
        number = self.place + (1 - self.model.preset.first)
        uniform_B = self.uniform.index_select(1, number)[:, 0]
        self.token.copy_(choose(logits, uniform_B, self.temperature, self.top_p))
        self.ids.index_copy_(1, number, self.token[:, None])

    def step(self, length: int) -> None:
        """One id more of each video; length: tokens with it that was chosen last."""
        pieces = min(-(-length // (GROW * PIECE)) * GROW, len(self.slots[0].keys))
        if pieces in self.steps:
            self.steps[pieces]()
            return
        self.forward(pieces)
        self.steps[pieces] = lambda: self.forward(pieces)
        if self.record:
            self.steps[pieces] = recorded(self.steps[pieces])

    def forward(self, pieces: int) -> None:
        """A step that looks at the first so many pieces."""
        model = self.model
        self.place.add_(1)
        x = model.embedding[self.token]
        cos, sin = (table.index_select(0, self.place)[:, None] for table in (model.cos, model.sin))
        places = torch.arange(pieces * PIECE, device=model.device).view(pieces, PIECE)
        seen = places <= self.place
        for i, layer in enumerate(model.layers):
            if model.absolute is not None:
                x = x + model.absolute.index_select(0, self.place)
            q, k, v = model.qkv(layer, x[:, None], cos, sin)
            slots = self.slots[i]
            slots.add(self.place, k[:, 0], v[:, 0])
            out = attend(q[:, 0], slots.keys[:pieces], slots.values[:pieces], seen)
            x = x + model.summed(F.linear(out, layer.out))
            if self.contexts:
                of = self.contexts[i]
                x = x + model.cross(layer, x, lambda q, of=of: attend(q, of.keys, of.values, self.words))
            x = x + model.ffn(layer, x)
        self.say(x)
