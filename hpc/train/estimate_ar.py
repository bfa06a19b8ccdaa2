"""What train.ar needs of each GPU: see hpc.train.estimate.

Bytes for each weight on a rank, with mixed precision and megatron-core's distributed optimizer over d data- and
context-parallel ranks (core 0.16.1: distributed/param_and_grad_buffer.py, optimizer/distrib_optimizer.py):

    bfloat16    2 weights + 4 gradients + 12 / d   float32 weights and two moments
    float32     4 weights + 4 gradients +  8 / d

With adapters only they have gradients and moments.

Activations follow Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022
(https://arxiv.org/abs/2205.05198), section 4, for these layers: no dropout, SwiGLU, grouped queries, attention that
keeps no scores. A layer keeps for each token, with h channels, q and k of queries and keys, f of the feed-forward:

    4 h             what comes into two norms, and what comes out        (/ tensor with sequence parallelism)
    3 q + 4 k       queries, keys and values before and after the fused norm and rotation; attention's output
    3 f             both halves of the feed-forward, and their product   (all / tensor)

By the plain kernels q and k are kept once more. Pipeline stage i of p holds min(p - i, microbatches) microbatches
(1F1B: Narayanan et al., 2021, https://arxiv.org/abs/2104.04473).

Measured on one H200, AR-4B, 12,800 tokens, no recomputation (tests/bench_ar.py): 99.1 GiB in bfloat16, estimated 99.4;
FP8 102.1 (delayed) and 101.3 (current), estimated 102.4. Steps of 8 microbatches 5.00 s, estimated 5.0; 3.65 and 3.74 s
in FP8, estimated 3.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from hpc.train.estimate import SLOWEST, SUSTAINED, UPDATE, Estimate, Place, busy

if TYPE_CHECKING:
    from hpc.train.settings.ar import TrainAr


def estimate(s: TrainAr, place: Place) -> Estimate:
    one, data = s.layout, place.ranks // s.layout.ranks
    lies = [f"{name} {count}" for name, count in (("tensor", one.tensor), ("pipeline", one.pipeline),
            ("context", one.context), ("data", data)) if count > 1]  # fmt: skip
    sides = [memory(s, place.ranks, stage) for stage in sorted({0, one.pipeline - 1})]
    fullest = max(sides, key=lambda parts: sum(parts.values()))
    m = s.preset
    return Estimate(
        what=f"{s.model} over {place.ranks} GPU{'s' * (place.ranks > 1)}" + "".join(f", {each}" for each in lies),
        memory=fullest, samples=f"{s.batch} x {m.length:,} tokens", steps=s.steps, ranks=place.ranks,
        flops=s.batch * s.flops, kept=s.moving * (12 if s.precision == "fp32" else 14),
        times=times(s, place, sides) if place.gpu else {}, peak=place.gpu.bf16 if place.gpu else 0.0,
    )  # fmt: skip


def held(s: TrainAr, ranks: int, stage: int) -> dict[str, float]:
    """Weights of a pipeline stage on one rank: {"layers", "ends"}, the embedding and the output, where it has them."""
    m, one = s.preset, s.layout
    ends = (m.vocab * m.dim if stage == 0 else 0) + ((m.classes + 1) * m.dim if stage == one.pipeline - 1 else 0)
    layers = m.parameters - (m.vocab + m.classes + 1) * m.dim
    return {"layers": layers / one.pipeline / one.tensor, "ends": ends / one.tensor}


def kept(s: TrainAr) -> tuple[float, float]:
    """Bytes that a layer keeps of each token of a rank: where nothing is computed again, and of its input alone."""
    m, one = s.preset, s.layout
    whole = 1 / one.tensor if one.sequence else 1.0
    wide, fp8 = 4 if s.precision == "fp32" else 2, s.precision.startswith("fp8")
    q, k = m.heads * m.head_dim, m.kv_heads * m.head_dim
    plain = s.kernels == "torch" or s.precision == "fp32"
    each = wide * (4 * m.dim * whole + (3 * q + 4 * k + 3 * m.ffn + plain * (q + k)) / one.tensor)
    if m.context_dim is not None:
        each += wide * (2 * m.dim * whole + 3 * q / one.tensor)
    if fp8:  # of what linear layers take one byte is kept; attention's output besides in bfloat16
        each += (q - m.ffn) / one.tensor - 2 * m.dim * whole
    return each, wide * m.dim * whole


def memory(s: TrainAr, ranks: int, stage: int = 0) -> dict[str, float]:
    """Bytes on a GPU of a pipeline stage, by what they are for."""
    m, one = s.preset, s.layout
    data = ranks // one.ranks * one.context  # context-parallel ranks share the optimizer, too
    own = held(s, ranks, stage)
    weights = sum(own.values())
    wide = 4 if s.precision == "fp32" else 2
    # transformer-engine keeps FP8 weights as they are and transposed, from the way there to the way back
    eight = 2 * own["layers"] if s.precision.startswith("fp8") and s.recompute != "full" else 0
    tokens = s.micro_batch * m.length / one.context
    layers = m.layers / one.pipeline
    at_once = min(one.pipeline - stage, max(1, s.batch // (ranks // one.ranks) // s.micro_batch))
    each, entry = kept(s)
    if s.recompute == "full":
        activations = tokens * (entry * layers * at_once + each)
    else:
        activations = tokens * each * layers * at_once
    moving = weights if s.lora is None else s.moving / one.pipeline / one.tensor
    parts = {
        "weights": (weights + (moving if s.lora else 0)) * wide + eight,
        "gradients": moving * 4,
        "optimizer": moving * (8 if s.precision == "fp32" else 12) / data,
        "activations": activations,
    }
    if stage == one.pipeline - 1:  # plain kernels: the softmax and its gradient in float32
        copies = 12 if s.kernels == "torch" or s.precision == "fp32" else 2 * wide
        parts["logits"] = tokens * m.classes / one.tensor * copies
    return parts


def times(s: TrainAr, place: Place, sides: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of a step."""
    m, one, gpu = s.preset, s.layout, place.gpu
    assert gpu is not None
    data = place.ranks // one.ranks
    micro = s.batch // data // s.micro_batch
    q, t = m.heads * m.head_dim, m.length
    attention = 3 * m.layers * 2.0 * t**2 * q + 12.0 * m.layers * t * m.context_tokens * q
    output = (4.0 if s.lora else 6.0) * t * m.dim * m.classes
    linear = s.flops - attention - output
    again = {"none": (1.0, 1.0), "selective": (1.0, 4 / 3), "full": (4 / 3, 4 / 3)}[s.recompute]
    linear, attention = linear * again[0], attention * again[1]
    share = s.batch / place.ranks
    fp8 = s.precision.startswith("fp8")
    layer, _ = kept(s)
    moved = layer * t * m.layers / one.pipeline / one.context * s.batch / data
    compute = busy(gpu, share * (output + (0 if fp8 else linear)), share * attention, moved, causal=True,
                   fp8=share * linear if fp8 else 0.0)  # fmt: skip
    found = {"computing": compute}
    if place.ranks > 1:
        found["waiting for the slowest GPU"] = SLOWEST * compute
    if one.pipeline > 1:
        found["waiting of pipeline stages"] = compute * (one.pipeline - 1) / micro
    if one.tensor > 1:
        # with sequence parallelism 4 gathers or scatters there and 6 back, else 2 and 2 reductions of twice the bytes
        passes = (10 if one.sequence else 8) + (4 if s.recompute == "full" else 0)
        passes += 0 if m.context_dim is None else passes // 2
        message = t / one.context * m.dim * (4 if s.precision == "fp32" else 2) * (one.tensor - 1) / one.tensor
        found["tensor-parallel messages"] = (
            passes * message * m.layers / one.pipeline * s.batch / data / place.between(one.tensor)
        )
    weights = max(parts["gradients"] for parts in sides) / 4
    spread = data * one.context
    if spread > 1:
        # weights are gathered after the update; gradients are summed during the last microbatch's way back
        rate = place.between(spread, one.tensor) / ((spread - 1) / spread)
        late = max(0.0, 4 * weights / rate - 2 / 3 * compute / micro)
        found["data-parallel messages"] = 2 * weights / rate + late
    found["update"] = weights * (8 + (UPDATE - 8) / spread) / (SUSTAINED * gpu.bandwidth)
    return found


def alternatives(s: TrainAr, place: Place) -> Iterator[tuple[str, TrainAr, Place]]:
    """(what a spec would say, settings, where): what takes less memory of a GPU."""
    if s.micro_batch > 1 and not s.layout.problems(s.preset, s.precision, 1):
        yield "`micro_batch: 1`", msgspec.structs.replace(s, micro_batch=1), place
    if s.recompute != "full":
        yield "`recompute: full`", msgspec.structs.replace(s, recompute="full"), place
    for name in ("tensor", "pipeline", "context"):
        for count in (2, 4, 8):
            value = getattr(s.layout, name) * count
            layout = msgspec.structs.replace(s.layout, **{name: value})
            impossible = place.ranks % layout.ranks or layout.problems(s.preset, s.precision, s.micro_batch)
            if value <= 8 and not impossible:
                yield f"`layout.{name}: {value}`", msgspec.structs.replace(s, layout=layout), place
