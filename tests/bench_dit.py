"""What a diffusion transformer alone costs on one GPU: a forward pass as in generation, forward and backward as in
training, without optimizer, data and VAE.

    python tests/bench_dit.py [--models predict2.5-2b,...] [--sizes 480,720] [--how eager,compiled] [--save 0,8]
                              [--blocks N] [--tiny]

Random weights of the published sizes in bfloat16, batch 1, 512 tokens of text. Sizes are those of training: 93 frames
of 432x768 (31,104 tokens) and of 704x1280 (84,480 tokens); Predict1's 121 frames of 704x1280 are 56,320 tokens.
--save N: blocks whose activations are kept, the others are computed twice (recompute is no model FLOP); "all": of all.
--blocks: a slice of the model. --tiny: small sizes, to see that it runs; also on a CPU.

Each time is the median of 5 runs after 2 to warm up. MFU: model FLOPs (hpc.models.dit_presets.flops: attention all to
all, blocks' matrices) / time / 989 TFLOP/s. `attention`, `matrices`: the time of these alone, forward and backward, at
the same shapes: what a step cannot be shorter than.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hpc.models.attention import attend, backend
from hpc.models.dit import DiT
from hpc.models.dit_presets import MLP, PRESETS, Config, flops, parameters

PEAK = 989e12  # dense bfloat16, of an H100 SXM and an H200 alike
LATENTS = {"480": (24, 54, 96), "720": (24, 88, 160)}
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def seconds(run: Callable[[], object], rounds: int = 5, warm: int = 2) -> float:
    times = []
    for i in range(warm + rounds):
        began = time.perf_counter()
        run()
        if GPU:
            torch.cuda.synchronize()
        if i >= warm:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def alone(c: Config, tokens: int, text: int) -> tuple[float, float]:
    """Seconds of all blocks' attention, and of their matrices, forward and backward."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def both(q: Tensor, k: Tensor, v: Tensor) -> None:
        attend(q, k, v).backward(torch.ones_like(q))

    head = (c.heads, c.head_channels)
    ours = matrices = 0.0
    for length in (tokens, text):
        qkv = [random(1, tokens, *head), random(1, length, *head), random(1, length, *head)]
        ours += seconds(lambda qkv=qkv: both(*qkv), 3, 1)
    for inside, outside, count in ((c.channels, c.channels, 6), (c.channels, MLP * c.channels, 1),
                                   (MLP * c.channels, c.channels, 1)):  # fmt: skip
        x, w = random(tokens, inside), random(outside, inside)
        gradient = torch.ones(tokens, outside, device=DEVICE, dtype=torch.bfloat16)
        matrices += count * seconds(lambda x=x, w=w, g=gradient: torch.nn.functional.linear(x, w).backward(g), 3, 1)
    return c.blocks * ours, c.blocks * matrices


def row(name: str, c: Config, size: tuple[int, int, int], how: str, save: str, text: int) -> str:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.device(DEVICE):
        model = DiT(c).to(torch.bfloat16)
        x, words = torch.randn(1, c.latent_channels, *size), torch.randn(1, text, c.text_input, dtype=torch.bfloat16)
        level, fps = torch.tensor([0.5]), torch.tensor([24.0])
    keep = c.blocks if save == "all" else min(int(save), c.blocks)
    for i, block in enumerate(model.blocks):
        if how == "compiled":
            block.compile(fullgraph=True)
        if i >= keep:
            block.forward = lambda *x, f=block.forward: (
                checkpoint(f, *x, use_reentrant=False) if torch.is_grad_enabled() else f(*x)
            )

    def forward() -> Tensor:
        return model(x, level, words, None, fps).latents_BCTHW

    def step() -> None:
        forward().square().mean().backward()
        model.zero_grad()

    tokens = size[0] * size[1] * size[2] // 4
    words_of = f"{name:24} {c.blocks:3} blocks {tokens:7} tokens  {how:8} save {keep:3}"
    try:
        with torch.no_grad():
            generation = seconds(forward)
        training = seconds(step)
    except torch.OutOfMemoryError:
        return f"{words_of}  out of memory: keep fewer"
    work = flops(c, *size, text)
    memory = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0
    told = f"forward {generation:7.3f} s {work / generation / PEAK:5.1%}  training {training:7.3f} s "
    told += f"{3 * work / training / 1e12:5.0f} TFLOP/s MFU {3 * work / training / PEAK:5.1%}"
    return f"{words_of}  {told}  peak {memory:5.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="predict2.5-2b")
    parser.add_argument("--sizes", default="480,720")
    parser.add_argument("--how", default="eager,compiled")
    parser.add_argument("--save", default="0")
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if GPU:
        print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name in args.models.split(","):
        c = PRESETS[name].config
        if args.tiny:
            c = dataclasses.replace(c, channels=64, heads=2, blocks=2, text_projection=None, text_channels=32)
        c = dataclasses.replace(c, blocks=args.blocks or c.blocks)
        print(f"{name}: {parameters(c) / 1e9:.2f}e9 weights, attention by",
              backend(torch.device(DEVICE, 0 if GPU else None), torch.bfloat16, c.head_channels))  # fmt: skip
        for size in args.sizes.split(","):
            latents = (16, 88, 160) if name.startswith("predict1") else LATENTS[size]
            latents, text = ((2, 8, 12), 16) if args.tiny else (latents, 512)
            tokens = latents[0] * latents[1] * latents[2] // 4
            least = alone(c, tokens, text)
            print(f"{name:24} {c.blocks:3} blocks {tokens:7} tokens  attention {least[0]:.3f} s, matrices "
                  f"{least[1]:.3f} s: MFU at most {3 * flops(c, *latents, text) / sum(least) / PEAK:.1%}")  # fmt: skip
            for how in args.how.split(","):
                for save in args.save.split(","):
                    print(row(name, c, latents, how, save, text), flush=True)


if __name__ == "__main__":
    main()
