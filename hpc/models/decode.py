"""The likeliest tokens after a prompt, one by one: what transformers' `generate` does greedily, as one CUDA graph.

A step of `generate` is hundreds of small kernels that Python starts one by one, and on a fast GPU starting them takes
several times longer than running them. Here keys and values have their places in tensors of a fixed size, and the rest
of the step's state (tokens, positions, what is masked, what was said) is in tensors too, so that a GPU records the step
once and repeats it. Elsewhere the same step runs as it is. Attention of one query has little to do but to read keys
and values; `attend` reads them in pieces that all of a GPU works on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PIECE = 256  # places for keys come in such pieces, which are attended to side by side
LOOK = 16  # steps between two looks at whether all have ended: a look waits for the GPU
OTHER = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
         "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias",
         "exponential_decay_length_penalty", "guidance_scale", "stop_strings", "num_beams")  # fmt: skip
"""What a generation config may ask for, and is left to `generate`."""
NOTHING = (None, 0, 1, [])
SDPA, ATTEND = "sdpa", "hpc_attend"  # names that transformers knows attention by


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor,
    dropout: float = 0.0, scaling: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """softmax(q k^T) v of one query a sequence, as transformers calls it: [batch, 1, heads, size].

    query [batch, heads, 1, size]; key, value [batch, key heads, places, size], places in whole pieces; attention_mask
    bool [batch, 1, 1, places], each row with a place that is seen. Queries that share a key head go together, and each
    piece is a matrix product of its own: kernels for one query run on batch x heads of a GPU's processors alone, and
    take 10 times longer over 8,000 places. Sums are in float32.
    """
    batch, heads, _, size = query.shape
    shared, places = key.shape[1:3]
    pieces = places // PIECE
    query = query.view(batch, shared, 1, heads // shared, size).expand(-1, -1, pieces, -1, -1)
    scores = product(query.reshape(-1, heads // shared, size), key.reshape(-1, PIECE, size).transpose(1, 2))
    scores = scores.view(batch, shared, pieces, -1, PIECE) * (size**-0.5 if scaling is None else scaling)
    scores = scores.masked_fill(~attention_mask.view(batch, 1, pieces, 1, PIECE), float("-inf"))
    parts = (scores - scores.amax((2, 4), keepdim=True)).exp()
    weights = parts.to(value.dtype).view(-1, heads // shared, PIECE)
    out = product(weights, value.reshape(-1, PIECE, size)).view(batch, shared, pieces, -1, size).sum(2)
    return (out / parts.sum((2, 4))[..., None]).to(value.dtype).view(batch, 1, heads, size), None


def product(a: Tensor, b: Tensor) -> Tensor:
    """float32 [n, i, k] of [n, i, j] and [n, j, k]."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else torch.bmm(a, b)


class Slots:
    """Keys and values of all layers, in tensors of a fixed size: what a model of transformers calls past_key_values."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], room: int) -> None:
        """layers: keys and values [batch, heads, length, size] so far; room: for so many tokens more."""
        self.keys, self.values = (
            [torch.nn.functional.pad(layer[i], (0, 0, 0, room)) for layer in layers] for i in (0, 1)
        )
        self.length = torch.tensor([layers[0][0].shape[2]], device=layers[0][0].device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.length, keys)
        self.values[layer].index_copy_(2, self.length, values)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, layer: int = 0) -> Tensor:
        return self.length


class Steps:
    """The state of a batch whose prompts the model has read, and the step that adds a token to each."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], tokens: int, ends: Sequence[int], pad: int,
                 penalty: float) -> None:  # fmt: skip
        self.model, self.pad, self.penalty = model, pad, penalty
        ids, there = inputs["input_ids"], inputs["attention_mask"]
        self.position = there.sum(-1, keepdim=True) - 1
        if "video_grid_thw" not in inputs:
            inputs = inputs | {"position_ids": (there.cumsum(-1) - 1).clamp(min=0)}
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        if "video_grid_thw" in inputs:  # frames take fewer positions than tokens
            self.position = self.position + model.model.rope_deltas.to(ids.device)
        room = tokens + -(ids.shape[1] + tokens) % PIECE
        self.slots = Slots([(layer.keys, layer.values) for layer in out.past_key_values.layers], room)
        self.mask = torch.nn.functional.pad(there.bool(), (0, room))[:, None, None]
        self.ends = torch.tensor(list(ends), device=ids.device)
        self.said = torch.full((len(ids), tokens), pad, device=ids.device)
        self.count = torch.zeros(1, dtype=torch.long, device=ids.device)
        self.done = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
        self.seen = torch.zeros(len(ids), out.logits.shape[-1], dtype=torch.bool, device=ids.device)
        self.seen.scatter_(1, torch.where(there == 1, ids, ids[:, -1:]), True)  # padding is nothing that was said
        self.token = torch.empty_like(ids[:, :1])
        self.yes = torch.ones(1, dtype=torch.bool, device=ids.device)
        self._say(out.logits)

    def _say(self, logits: Tensor) -> None:
        """Takes the likeliest token of each [batch, 1, vocabulary]."""
        likely = logits[:, -1].float()
        if self.penalty != 1.0:
            lowered = torch.where(likely < 0, likely * self.penalty, likely / self.penalty)
            likely = torch.where(self.seen, lowered, likely)
        token = likely.argmax(-1, keepdim=True).masked_fill(self.done, self.pad)
        self.token.copy_(token)
        self.seen.scatter_(1, token, True)
        self.said.index_copy_(1, self.count, token)
        self.done.logical_or_((token == self.ends).any(-1, keepdim=True))
        self.count.add_(1)
        self.position.add_(1)

    def step(self) -> None:
        self.mask.index_copy_(3, self.slots.length, self.yes.expand(len(self.mask), 1, 1, 1))
        config = self.model.config.get_text_config()
        config._attn_implementation = ATTEND
        try:
            out = self.model(
                input_ids=self.token, attention_mask=self.mask, position_ids=self.position, past_key_values=self.slots,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        finally:
            config._attn_implementation = SDPA
        self.slots.length.add_(1)
        self._say(out.logits)


def suits(model: Any) -> bool:
    """Does `greedy` do for this model what its `generate` would? Not where layers look at a part of what was before, or
    where the generation config asks for more than is known here."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = all(getattr(model.generation_config, name, None) in NOTHING for name in OTHER)
    return kinds == {"full_attention"} and config._attn_implementation == SDPA and plain


@torch.inference_mode()
def greedy(
    model: Any, inputs: dict[str, Tensor], tokens: int, ends: Sequence[int], pad: int, penalty: float = 1.0,
    check: Callable[[], None] = lambda: None, record: bool = True,
) -> Tensor:  # fmt: skip
    """Tokens [batch, at most `tokens`] after the prompts, padded behind each one's end.

    model: one that `suits`. inputs: what its `generate` takes; prompts are padded on the left. ends: tokens that end an
    answer, and are its last. penalty: likelihoods of tokens that were there before are divided by it, as
    transformers' RepetitionPenaltyLogitsProcessor does. check() is called between steps and may raise. record: as a
    CUDA graph, on a GPU. Raises torch.OutOfMemoryError.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTEND, attend)
    state = Steps(model, inputs, tokens, ends, pad, penalty)
    step = state.step
    for number in range(1, tokens):
        check()
        step()
        if number == 1 and record and model.device.type == "cuda":
            step = recorded(state.step)
        if number % LOOK == 0 and bool(state.done.all()):
            break
    return state.said[:, : int(state.count)]


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph: it has run once, and all it reads and writes stays where it is. The step itself, where
    a model does what cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may pin memory meanwhile
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.warning("the model's step is not recorded as a CUDA graph: %s", str(error).splitlines()[0])
        return step
    return graph.replay
