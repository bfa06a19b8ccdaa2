"""What train.diffusion needs of each GPU: see hpc.train.estimate.

Weights, gradients, two moments and each mean are float32, spread over n ranks by FSDP2: (16 + 4 x means) / n bytes for
each weight. Beside them are, in bfloat16, the block that computes and the next one, gathered (torch.distributed.fsdp
2.9: _fsdp_param_group.py prefetches one), the float32 gradients of one block before they are spread, and what stands
outside of blocks, gathered throughout; on one GPU all blocks are (hpc.train.fsdp). With LoRA only the adapters have
gradients, moments and means.

Activations are KEPT bytes for each token, channel and block: tests/test_train_diffusion.py holds them against what
autograd keeps. What is computed again is there for one block at a time. They are most where the way back begins. There
are no gradients yet, unless those of an earlier part of the batch: the update frees them. So the largest counts of what
is never there together: activations, all gradients, and what encodes videos before each step, large ones in pieces
(hpc.models.tokenizers.encoded).

Held against one H200, Predict2.5-2B in eight ways, and against two (tests/test_estimate.py): within 1.5 % of memory,
5.5 % of a step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from hpc.models.dit_presets import MLP, Config, flops, parameters
from hpc.models.tokenizer_files import PIECE, piece
from hpc.train.estimate import SLOWEST, SUSTAINED, Estimate, Place, busy

if TYPE_CHECKING:
    from hpc.train.settings.data import Shape
    from hpc.train.settings.diffusion import TrainDiffusion

KEPT = {"none": 79.0, "matmuls": 28.0, "attention": 6.0, "blocks": 2.0}
"""Bytes that a block in bfloat16 keeps for the way back, for each token and channel, by what is computed again, not
compiled."""
FUSED, FUSED_FP8, HANDED = 53.0, 50.5, 47.5
"""The same where nothing is computed again, and kernels do what is between matrix products: ours (hpc.kernels), or
those that torch.compile makes. Hidden states 3 x 2 and as they are modulated 3 x 2; q, k, v before the norms and q, k
after them 10, of attention to the text 4; what each attention and projection makes 8, the MLP 18; one more on a GPU. In
FP8 as measured, beside the weights; less where layers are handed FP8 by our kernels, of which the transposed copy
alone is kept."""
WAY_BACK = 12.0
"""Bytes of gradients where the way back begins, of one block: two of its MLP's hidden states, and less."""
POSITIONS = 8.0
"""Bytes of learned positions, for each token of a video and channel: in float32, in bfloat16, and their gradient."""
EAGER = 5.0
"""Times that more is read and written for what is kept where PyTorch's operators run one by one, in float32."""
ENCODING = {r"Wan|Predict2": 1190.0, r"CV8x8x8": 75.0}
"""Bytes for each pixel that is encoded at once, by words in a tokenizer's name: 93 GiB for 93 frames of 704 x 1280, 6
GiB for 97 (tests/bench_tokenizers.py)."""
BEFORE = 5
"""Frames more that a stream takes for what it keeps of those before: by 4 frames 9 GiB, by 16 21 GiB."""
TEXT = {"t5": 4.76e9 * 2, "qwen2.5-vl": 8.29e9 * 2}
"""Bytes of an encoder's weights in bfloat16: T5-11B's encoder, Qwen2.5-VL-7B."""


def estimate(s: TrainDiffusion, place: Place) -> Estimate:
    """Raises ValueError where the compression of the tokenizer is not known."""
    if s.compression is None:
        raise ValueError("tokenizer: only its files can tell how large latents are")
    spread = s.mesh.sharded(place.ranks)
    lies = [f"{name} {count}" for name, count in (("dp_replicate", s.mesh.dp_replicate), ("dp_shard", spread //
            s.mesh.cp), ("cp", s.mesh.cp)) if count > 1]  # fmt: skip
    shapes = list(zip(s.shapes, s.latents(s.compression), strict=True))
    # a step takes one of the shapes: of several, the one that takes longest
    shape, latent = max(shapes, key=lambda pair: pair[0].batch * flops(s.config, *pair[1]))
    weights, trained = parameters(s.config), adapted(s)
    return Estimate(
        what=f"{s.model} over {place.ranks} GPU{'s' * (place.ranks > 1)}" + "".join(f", {each}" for each in lies),
        memory=memory(s, place), samples=f"{shape.batch} x {latent.tokens:,} tokens", steps=s.steps, ranks=place.ranks,
        flops=shape.batch * 3 * flops(s.config, *latent), kept=4.0 * weights + trained * (8.0 + 4 * len(s.ema)),
        times=times(s, place, shape.batch, latent) if place.gpu else {}, peak=place.gpu.bf16 if place.gpu else 0.0,
    )  # fmt: skip


def adapted(s: TrainDiffusion) -> float:
    """Weights that are trained."""
    c = s.config
    if not s.lora:
        return parameters(c)
    if s.lora.targets is not None:  # which layers they are the model alone can tell: at most all
        return min(parameters(c), s.lora.rank * c.blocks * per_rank(c))
    return s.lora.rank * c.blocks * per_rank(c)


def per_rank(c: Config) -> int:
    """Weights of a block's adapters of the rank 1: channels in and out of each of its large layers."""
    attention = 8 * c.channels  # q, k, v, output
    text = 6 * c.channels + 2 * c.text_channels  # of k and v, the channels of texts come in
    return attention + text + 2 * (1 + MLP) * c.channels


def outside(c: Config) -> float:
    """Weights that are in no block."""
    return parameters(dataclasses.replace(c, blocks=0))


def whole(s: TrainDiffusion) -> float:
    """Bytes that a block keeps where nothing is computed again."""
    if eager(s):
        return KEPT["none"]
    if not s.precision.startswith("fp8"):
        return FUSED
    return FUSED_FP8 if s.compile or s.lora or s.precision == "fp8-blockwise" else HANDED


def eager(s: TrainDiffusion) -> bool:
    return not s.compile and (s.kernels == "torch" or s.precision == "fp32")


def states(s: TrainDiffusion, ranks: int) -> dict[str, float]:
    """Bytes on a GPU of what is there from step to step, and of all gradients."""
    spread, trained = s.mesh.sharded(ranks), adapted(s)
    return {
        "weights": parameters(s.config) * 4 / spread,
        "gradients": trained * 4 / spread,
        "moments": trained * 8 / spread,
        "means": trained * 4 * len(s.ema) / spread,
    }


def memory(s: TrainDiffusion, place: Place) -> dict[str, float]:
    """Bytes on a GPU, by what they are for, of the largest shape."""
    assert s.compression is not None
    c, spread, data = s.config, s.mesh.sharded(place.ranks), place.ranks // s.mesh.cp
    ends = outside(c)
    wide = 4 if s.precision == "fp32" else 2
    block = (parameters(c) - ends) / c.blocks
    gradients = 4 * (block + ends) if not s.lora else 4 * adapted(s) / c.blocks
    fp8 = s.precision.startswith("fp8")
    full = s.policies.count("none")
    each = sum(whole(s) if policy == "none" else KEPT[policy] for policy in s.policies) + WAY_BACK
    again = next((policy for policy in reversed(s.policies) if policy != "none"), None)
    each += 0.0 if again is None else whole(s) - KEPT[again]
    sizes = list(zip(s.shapes, s.latents(s.compression), strict=True))
    at_once = [s.micro_batch or shape.batch // data for shape, _ in sizes]
    tokens = max(count * one.tokens / s.mesh.cp for count, (_, one) in zip(at_once, sizes, strict=True))
    learned = max(one.tokens for _, one in sizes) / s.mesh.cp * POSITIONS if c.learned_positions else 0.0
    pixels = max(encoded_at_once(shape, count, s.compression[0])
                 for count, (shape, _) in zip(at_once, sizes, strict=True))  # fmt: skip
    passing = {
        "gathered": ((2 if spread > 1 else c.blocks) * block + ends) * wide + gradients,
        # transformer-engine keeps a block's weights in FP8, as they are and transposed, until the way back
        **({"fp8 weights": 2 * full * block} if fp8 and full else {}),
        "activations": (tokens * each + learned) * c.channels * wide / 2,
    }
    a_pixel = next((size for word, size in ENCODING.items() if re.search(word, s.video_tokenizer)), 0.0)
    encoding = {"encoding of videos": 0.0 if place.latents else pixels * a_pixel}
    text = {"text encoder": TEXT[s.preset.text]} if s.text.source == "encoder" else {}
    held = states(s, place.ranks)
    all_of_them = {"gradients": held.pop("gradients")}
    if any(count < shape.batch // data for count, (shape, _) in zip(at_once, sizes, strict=True)):
        held, all_of_them = held | all_of_them, {}  # those of the parts before
    return {**held, **text, **max(passing, encoding, all_of_them, key=lambda one: sum(one.values()))}


def encoded_at_once(shape: Shape, count: int, temporal: int) -> int:
    """Pixels that so many videos of a shape take at once while they are encoded."""
    video = shape.frames * shape.height * shape.width
    if video <= PIECE:
        return min(count, PIECE // video) * video
    return (piece(shape.height, shape.width, temporal) + BEFORE) * shape.height * shape.width


def times(s: TrainDiffusion, place: Place, batch: int, latent: tuple[int, int, int]) -> dict[str, float]:
    """Seconds of a step of a shape."""
    c, gpu, cp = s.config, place.gpu, s.mesh.cp
    assert gpu is not None
    spread, data = s.mesh.sharded(place.ranks), place.ranks // cp
    tokens = latent[0] * (latent[1] // 2) * (latent[2] // 2)
    share = batch / place.ranks  # samples of a GPU
    micro = batch / data / (s.micro_batch or batch // data)
    forward = flops(c, *latent)
    attention = c.blocks * 4.0 * c.channels * tokens * (tokens + 512)
    share_of = lambda *policies: sum(one in policies for one in s.policies) / max(1, c.blocks)  # of blocks
    matmuls = (forward - attention) * (3 + share_of("attention", "blocks"))
    attention *= 3 + share_of("blocks")
    again = 1 - share_of("none")
    moved = share * tokens * c.channels * c.blocks * whole(s) * (2 if s.precision == "fp32" else 1)
    moved *= (1 + again / 3) * (EAGER if eager(s) else 1)
    fp8 = s.precision.startswith("fp8")
    compute = busy(gpu, 0.0 if fp8 else share * matmuls, share * attention, moved, causal=False,
                   fp8=share * matmuls if fp8 else 0.0)  # fmt: skip
    found = {"computing": compute}
    if place.ranks > 1:
        found["waiting for the slowest GPU"] = SLOWEST * compute
    weights, trained = parameters(c), adapted(s)
    wide = 4 if s.precision == "fp32" else 2
    talk = 0.0
    if spread > 1:  # gathered there and back, gradients summed on the way back
        talk += (2 * wide * weights + 4 * trained) * (spread - 1) / spread / place.between(spread)
    if s.mesh.dp_replicate > 1:
        talk += 2 * 4 * trained / spread / place.between(s.mesh.dp_replicate, spread)
    if (late := micro * talk - 0.9 * compute) > 0:  # a part of the first and last block has nothing beside it
        found["FSDP's messages"] = late
    if cp > 1:  # queries, keys, values and outputs change from frames to heads, and back; so do their gradients
        passes = 8 + 4 * again
        message = share * tokens * c.channels * wide * (cp - 1) / cp
        found["context-parallel messages"] = passes * c.blocks * message / place.between(cp)
    found["update"] = trained / spread * (36 + 8 * len(s.ema)) / (SUSTAINED * gpu.bandwidth)
    return found


def alternatives(s: TrainDiffusion, place: Place) -> Iterator[tuple[str, TrainDiffusion, Place]]:
    """(what a spec would say, settings, where): what takes less memory of a GPU."""
    other = msgspec.structs.replace
    if s.micro_batch != 1 and any(shape.batch * s.mesh.cp > place.ranks for shape in s.shapes):
        yield "`micro_batch: 1`", other(s, micro_batch=1), place
    ways = ("none", "matmuls", "attention", "blocks")
    for way in ways[ways.index(s.recompute) + 1 :]:
        yield f"`recompute: {way}`", other(s, recompute=way), place
    for cp in (2, 4, 8):
        if cp > s.mesh.cp and cp % s.mesh.cp == 0:
            yield f"`mesh.cp: {cp}`", other(s, mesh=other(s.mesh, cp=cp)), place
    if s.mesh.dp_replicate > 1 and s.mesh.dp_shard is None:
        yield "`mesh.dp_replicate: 1`", other(s, mesh=other(s.mesh, dp_replicate=1)), place
    if len(s.ema) > 1:
        yield "one mean in `ema`", other(s, ema=s.ema[:1]), place
    if not place.latents:
        yield "prepare.latents before it", s, other(place, latents=True)
