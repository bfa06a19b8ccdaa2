"""What tokenizers cost on one GPU: frames and tokens a second, memory, and how near that is to what the chip allows.

    python tests/bench_tokenizers.py [--only dv,cv,wan] [--size 640,720] [--how eager,compiled] [--chunk 0,16]
                                     [--diffusers] [--tiny]

Random weights of the published sizes in bfloat16, batch 1, on 1024x640 x 33 frames and on 1280x720 x 93 (97 where a
latent frame is 8 of them: the next number that there is). A video goes through whole, and where --chunk says so as a
stream of that many frames at a time, which is how long ones go. --diffusers times the same networks as diffusers has
them, if it is installed. --tiny is everything at small sizes, to see that it runs; also on a CPU.

Each row's time is the median of runs after two to warm up. TFLOP/s count convolutions, matmuls and attention (the
formulas of torch.utils.flop_counter). `bound` is the time that these need at the least: for each of them the longer of
FLOPs / 989 TFLOP/s and of bytes / bandwidth, if it reads what it takes and writes what it makes once, and all else is
free (norms, activations, sums, copies). `share` is bound / time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hpc.models.tokenizers import cosmos, wan
from hpc.models.tokenizers.causal import CausalTokenizer, channels_last

FULL: dict[str, Callable[[], CausalTokenizer]] = {
    "dv": cosmos.CosmosDiscrete,
    "cv": cosmos.CosmosContinuous,
    "wan": wan.WanVAE,
}
TINY: dict[str, Callable[[], CausalTokenizer]] = {
    "dv": lambda: cosmos.CosmosDiscrete(cosmos.Config(channels=8)),
    "cv": lambda: cosmos.CosmosContinuous(cosmos.Config(channels=8, spatial=8, levels=(), latent_channels=16)),
    "wan": lambda: wan.WanVAE(wan.Config(channels=8)),
}
SIZES = {"640": (640, 1024, 33), "720": (720, 1280, 93)}
TINY_SIZES = {"640": (32, 48, 17), "720": (48, 64, 21)}
FLOPS = 989e12  # dense bfloat16, of an H100 SXM and an H200 alike
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}


class Bound(TorchDispatchMode):
    """Adds up the FLOPs of what runs in it, and the least time for them on a chip. Meta tensors will do."""

    def __init__(self, bandwidth: float) -> None:
        super().__init__()
        self.bandwidth = bandwidth
        self.flops = 0
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            flops = count(*args, **(kwargs or {}), out_val=out)
            touched = sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            self.flops += flops
            self.seconds += max(flops / FLOPS, touched / self.bandwidth)
        return out


def bound_of(make: Callable[[], CausalTokenizer], video: Tensor, bandwidth: float) -> tuple[Bound, Bound]:
    """Of encoding a video of this shape, and of decoding it."""
    with torch.device("meta"):
        tokenizer = make().to(torch.bfloat16)
        frames = torch.empty(video.shape, dtype=torch.bfloat16)
        z = torch.empty(1, tokenizer.latent_channels, *grid(tokenizer, video), dtype=torch.bfloat16)
    encode, decode = Bound(bandwidth), Bound(bandwidth)
    with torch.no_grad():
        with encode:
            tokenizer.encoder(frames, None)
        with decode:
            tokenizer.decoder(z, None)
    return encode, decode


def grid(tokenizer: CausalTokenizer, video: Tensor) -> tuple[int, int, int]:
    """Latent frames, height and width."""
    t, h, w = video.shape[2:]
    return tokenizer.latent_frames(t), h // tokenizer.spatial, w // tokenizer.spatial


def median_seconds(run: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Of runs that together take so many seconds, three at the least, after two to warm up."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once(), once()
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        times.append(once())
    return statistics.median(times)


def diffusers_twin(tokenizer: CausalTokenizer) -> nn.Module:
    """The same network as diffusers has it."""
    from diffusers import AutoencoderKLCosmos, AutoencoderKLWan

    c = tokenizer.config
    if isinstance(tokenizer, wan.WanVAE):
        return AutoencoderKLWan(base_dim=c.channels, z_dim=len(c.mean))
    widths = [c.channels * m for m in c.multipliers]
    return AutoencoderKLCosmos(
        latent_channels=c.latent_channels,
        encoder_block_out_channels=(c.channels, *widths),
        decode_block_out_channels=(*widths, widths[-1]),
        spatial_compression_ratio=c.spatial,
        temporal_compression_ratio=c.temporal,
    )


def ways(
    tokenizer: CausalTokenizer, how: str, chunk: int
) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """Encoding and decoding, whole or (chunk > 0) as a stream."""
    if how.startswith("diffusers"):
        weight = next(tokenizer.parameters())
        twin = diffusers_twin(tokenizer).to(weight.device, weight.dtype).eval()
        if how.endswith("compiled"):
            twin.encoder.compile(), twin.decoder.compile()
        return lambda video: twin.encode(video).latent_dist.mode(), lambda z: twin.decode(z.to(weight.dtype)).sample
    if how == "compiled":
        tokenizer.encoder.compile(dynamic=False), tokenizer.decoder.compile(dynamic=False)
    if not chunk:
        return tokenizer.encode, tokenizer.decode
    return (
        lambda video: list(tokenizer.encode_stream(video.split(chunk, dim=2))),
        lambda latents: list(tokenizer.decode_stream(latents.split(chunk // tokenizer.temporal, dim=-3))),
    )


def measure(name: str, shape: tuple[int, int, int], how: str, chunk: int, options: argparse.Namespace) -> None:
    """Prints the rows of encoding and of decoding."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    make = (TINY if options.tiny else FULL)[name]
    torch.compiler.reset()
    torch.manual_seed(0)
    with device:
        tokenizer = make().to(dtype).eval().requires_grad_(False)
    channels_last(tokenizer)
    height, width, frames = shape
    frames = 1 + -(-(frames - 1) // tokenizer.temporal) * tokenizer.temporal
    video = (torch.rand(1, 3, frames, height, width, device=device) * 2 - 1).to(dtype)
    t, h, w = grid(tokenizer, video)
    if tokenizer.vocabulary and not how.startswith("diffusers"):
        latents = torch.randint(tokenizer.vocabulary, (1, t, h, w), device=device, dtype=torch.int32)
    else:
        latents = torch.randn(1, tokenizer.latent_channels, t, h, w, device=device)
    chip = torch.cuda.get_device_name() if device.type == "cuda" else ""
    bandwidth = next((value for key, value in BANDWIDTH.items() if key in chip), 0.0)
    bounds = bound_of(make, video, bandwidth or 1e12)
    label = f"{name} {width}x{height}x{frames} {how}{f' by {chunk}' if chunk else ''}"
    encode, decode = ways(tokenizer, how, chunk)
    for what, run, bound in (
        ("encode", lambda: encode(video), bounds[0]),
        ("decode", lambda: decode(latents), bounds[1]),
    ):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            with torch.no_grad():
                seconds = median_seconds(run, device, 0 if options.tiny else 2)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"| {label} | {what} | does not fit |", flush=True)
            continue
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        share = f"{bound.seconds / seconds:.0%}" if bandwidth else "-"
        print(
            f"| {label} | {what} | {seconds * 1e3:,.1f} | {frames / seconds:,.1f} | {t * h * w / seconds:,.0f} "
            f"| {memory:.1f} | {bound.flops / 1e12:.2f} | {bound.flops / seconds / 1e12:,.0f} "
            f"| {bound.seconds * 1e3:,.1f} | {share} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="dv,cv,wan")
    parser.add_argument("--size", default="640,720")
    parser.add_argument("--how", default="eager,compiled")
    parser.add_argument("--chunk", default="0", help="frames at a time, several by commas; 0 is whole")
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    hows = options.how.split(",")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU'}\n")
    print("| | | ms | frames/s | tokens/s | peak GiB | TFLOP | TFLOP/s | bound ms | share |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.only.split(","):
        for size in options.size.split(","):
            shape = (TINY_SIZES if options.tiny else SIZES)[size]
            for how in hows:
                for chunk in map(int, options.chunk.split(",")):
                    measure(name, shape, how, chunk, options)
                if options.diffusers:
                    measure(name, shape, f"diffusers {how}", 0, options)


if __name__ == "__main__":
    main()
