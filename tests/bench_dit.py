"""What a training step of a diffusion transformer costs on one GPU, beside the same model in plain PyTorch.

    python tests/bench_dit.py [--only eager,compiled,bf16,fp8-current,fp8-delayed,...] [--sizes 480,720]
                              [--model predict2.5-2b] [--blocks N] [--rounds 3] [--steps 2] [--budget 450]
                              [--recompute NAME=WORDS ...] [--alone] [--profile] [--out FILE] [--tiny]

Rows, all of them the trainer's own step (hpc.train): the loss, forward and backward, norm and clipping, AdamW, one mean
of the weights; float32 weights in FSDP2 of one rank, random latents, a text of 512 tokens, batch 1.

    eager, compiled     PyTorch's operators and nn.Linear in bfloat16, without our kernels; compiled: torch.compile
    bf16                the same with kernels between matmuls and attention, and the update in one pass
    fp8-current, fp8-delayed, fp8-blockwise    that with transformer-engine's layers in FP8, by how numbers are scaled
    torch-fp8           fp8-current without our kernels
    fp8-dpa             fp8-delayed with attention in FP8 too (transformer-engine's fp8_dpa, cuDNN). Not fp8-current:
                        current scaling of attention is for Blackwell alone (transformer-engine 2.11,
                        dot_product_attention/utils.py, line 485: "FP8 current scaling on arch < sm100")
    te-attention        bf16 with transformer-engine's attention instead of PyTorch's
    compiled-ours       bf16 with the blocks compiled around our kernels
    bf16-plain-gelu, fp8-plain-gelu    GELU (of fp8-current) by PyTorch
    bf16-cast-again     bf16 with weights cast and gathered again for the way back
    bf16-plain-update   bf16 with PyTorch's AdamW, clipping and mean

Sizes are those of training: 93 frames of 432x768 (31,104 tokens) and of 704x1280 (84,480); Predict1's 121 frames of
704x1280 are 56,320 tokens. What a row computes again is in RECOMPUTE, and --recompute 480:bf16=attention,matmuls:16
says otherwise: `attention`, but of the first 16 blocks `matmuls` (`recompute`, `spared` of a spec). All rows compute
as little again as memory allows: of several ways the first whose estimate (hpc.train.estimate_diffusion) is below the
GPU's memory, and that turns out to be. On several GPUs (torchrun --nproc-per-node 2 tests/bench_dit.py ...) FSDP2 is
of all ranks, each with a sample of its own; rank 0 tells.

Rows take turns: in each round each is built anew, warmed up by a step (the first time by two), and makes --steps steps.
Told are medians over all rounds of the whole step, and of forward and backward alone, by the GPU's clock. Nothing
starts that would end after --budget seconds, by what it took before. MFU: model FLOPs (hpc.models.dit_presets.flops:
attention all to all counted 3x its forward, blocks' matrices; what is computed again is not counted) / time / 989
TFLOP/s whatever the precision. --alone: attention by itself, by each library, and matrices: what a step cannot be
shorter than. --profile: of one step more, where the GPU's time went. A row that fails says why, and the others go on.
--tiny: small sizes, also on a CPU, where all is float32 and kernels need TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import msgspec
import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn

from hpc.kernels import choose
from hpc.models.attention import attend, backend
from hpc.models.diffusion import Condition, Draws
from hpc.models.dit import Joints
from hpc.models.dit_presets import MLP, Config, flops, parameters
from hpc.train import diffusion_model, diffusion_optimizer, ema, estimate_diffusion, fsdp, ranks
from hpc.train.estimate import Place
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Shape
from hpc.train.settings.diffusion import Sizes
from hpc.train.settings.optimizer import Mean

PEAK = 989e12  # dense bfloat16, of an H100 SXM and an H200 alike
LATENTS = {"480": (24, 54, 96), "720": (24, 88, 160)}
GPU = torch.cuda.is_available()
NOTHING = contextlib.nullcontext()

ROWS: dict[str, dict[str, Any]] = {
    "eager": {"kernels": "torch"},
    "compiled": {"kernels": "torch", "compile": True},
    "bf16": {},
    "fp8-current": {"precision": "fp8-current"},
    "fp8-delayed": {"precision": "fp8-delayed"},
    "fp8-blockwise": {"precision": "fp8-blockwise"},
    "torch-fp8": {"precision": "fp8-current", "kernels": "torch"},
    "fp8-dpa": {"precision": "fp8-delayed"},
    "te-attention": {},
    "compiled-ours": {"compile": True},
    "bf16-plain-gelu": {},
    "fp8-plain-gelu": {"precision": "fp8-current"},
    "bf16-cast-again": {},
    "bf16-plain-update": {},
}
MAIN = "eager,compiled,bf16,fp8-current,fp8-delayed"
RECOMPUTE = {
    "480": "none | matmuls,none:14 | matmuls",
    "480:eager": "matmuls,none:9 | matmuls",
    "480:torch-fp8": "attention,none:9 | attention",
    "480:fp8-current": "none | attention,none:20 | attention",
    "480:fp8-delayed": "none | attention,none:20 | attention",
    "480:fp8-dpa": "none | blocks,none:20 | blocks",
    "720": "attention,none:6 | attention",
    "720:eager": "attention",
    "720:compiled": "attention",
    "720:fp8-current": "attention,none:8 | attention,none:6 | attention",
    "720:fp8-delayed": "attention,none:8 | attention,none:6 | attention",
    "720:bf16": "attention,matmuls:14 | attention,matmuls:10 | attention",
    "720:fp8-dpa": "blocks,none:6 | blocks",
    "720:te-attention": "blocks,none:6 | blocks",
    "720 predict1-7b-text2world": "attention,matmuls:14 | attention,matmuls:4 | attention | blocks",
}
"""By size and row, by size and model, or by size; of a 139 GiB GPU. Where memory does not reach, the next
of them. Predict1-7B's on two H200s: estimated 173, 126, 107 and 84 GiB."""

OURS = {"_forward", "_backward", "_largest", "_quantize", "_sum_parts", "_sum_rows"}
KINDS = {
    "attention": ("sdpa", "attention", "attn", "flash", "fmha", "cudnn_generated"),
    "matmul": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk", "aten::mm", "aten::addmm"),
    "compiled": ("triton_",),
    "optimizer, norm": ("multi_tensor", "foreach", "adam", "lpnorm"),
    "fp8 casts": ("transpose", "amax", "fp8", "transformer_engine"),
    "copies, casts": ("copy", "cast", "memcpy", "memset", "cat", "fill"),
    "messages": ("nccl",),
}
"""Kinds of GPU kernels, by words in their names; the first that fits."""


def kind_of(kernel: str) -> str:
    if kernel in OURS:
        return "our kernels"
    if kernel == "_step":
        return "optimizer, norm"
    low = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in low for word in words)), "elementwise, rest")


def settings_of(row: str, model: str, size: str, tiny: bool, blocks: int, words: str) -> TrainDiffusion:
    """words: what is computed again."""
    first, *spared = words.strip().split(",")
    more = dict(ROWS[row])
    if tiny:
        sizes = {"channels": 128, "heads": 2, "blocks": 2, "adaln_rank": 8, "text_channels": 32}
        shape = Shape(frames=5, height=64, width=64, batch=1)
        if not GPU:
            more["precision"], more["compile"] = "fp32", False
    else:
        sizes = {"blocks": blocks} if blocks else {}
        t, h, w = LATENTS[size]
        shape = Shape(frames=1 + 4 * (t - 1), height=8 * h, width=8 * w, batch=1)
    if model.startswith("predict1"):
        shape = Shape(frames=9, height=64, width=64, batch=1) if tiny else Shape(frames=121, height=704, width=1280,
                                                                                 batch=1)  # fmt: skip
    return TrainDiffusion(**{
        "model": model, "sizes": Sizes(**sizes), "shapes": (shape,), "steps": 1000, "ema": (Mean(rate=0.999),),
        "recompute": first, "spared": {name: int(count) for name, count in (one.split(":") for one in spared)}, **more,
    })  # fmt: skip


class Row:
    """A model with its optimizer, mean and inputs."""

    def __init__(self, row: str, settings: TrainDiffusion, here: ranks.Here, text: int) -> None:
        self.settings, self.here = settings, here
        self.objective = diffusion_model.objective(settings)
        with mock.patch.object(fsdp, "keep_gathered", lambda _: None) if row == "bf16-cast-again" else NOTHING:
            self.model = diffusion_model.build(settings, here)
        self.filled()
        for layer in self.model.blocks if row.endswith("plain-gelu") else ():
            layer.mlp.joints = Joints("torch")
        for layer in self.model.blocks if row in ("fp8-dpa", "te-attention") else ():
            layer.self_attn.attend = te_attention(settings.config)
        self.eight = row == "fp8-dpa"
        self.optimizer = diffusion_optimizer.make(self.model, settings.optimizer)
        self.means = [ema.begin(self.model)]
        fused = choose(settings.kernels, torch.empty(0, device=here.device)) == "fused"
        self.at_once = fused and row != "bf16-plain-update"
        c, [latent] = settings.config, settings.latents(settings.compression or (4, 8))
        random = torch.Generator(here.device).manual_seed(1)
        shape = (1, c.latent_channels, *latent)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random, device=here.device)

        given = torch.zeros(1, latent.frames, device=here.device) if c.condition_mask else None
        self.x0 = normal(*shape)
        self.condition = Condition(normal(1, text, c.text_input), given, None, torch.tensor([24.0], device=here.device))
        self.draws = Draws(normal(*shape), normal(1), torch.ones(1, 2, device=here.device), normal(1), normal(*shape))
        self.losses: list[float] = []

    @torch.no_grad()
    def filled(self) -> None:
        """Random weights, made where they are: blocks are no identity, as they are at first."""
        torch.manual_seed(1)
        for name, weight in (*self.model.named_parameters(), *self.model.named_buffers()):
            one = ema.local(weight)
            one.fill_(1.0) if "norm" in name else one.normal_(0, 0.02)

    def step(self) -> tuple[Any, Any, Any]:
        """Marks: where it began, after the backward pass, at the end."""
        began = mark()
        with computing(self.settings, self.here.device, self.eight):
            loss = self.objective.loss(self.model, self.x0, self.condition, self.draws).loss
        loss.backward()
        between = mark()
        diffusion_optimizer.step(self.model, self.optimizer, self.settings.optimizer, self.means, [0.999], self.at_once)
        self.optimizer.zero_grad()
        ended = mark()
        self.losses.append(loss.item())
        return began, between, ended


@contextlib.contextmanager
def computing(settings: TrainDiffusion, device: torch.device, eight: bool) -> Iterator[None]:
    """The trainer's, or with attention in FP8 too."""
    if not eight:
        with diffusion_model.computing(settings, device):
            yield
        return
    import transformer_engine.pytorch as te

    with te.autocast(enabled=True, recipe=attention_too()):
        yield


def attention_too() -> Any:
    """The trainer's recipe of delayed scaling, of attention as well."""
    return dataclasses.replace(diffusion_model.recipe("fp8-delayed"), fp8_dpa=True)


def te_attention(c: Config) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """transformer-engine's, in FP8 where its recipe says so."""
    from transformer_engine.pytorch import DotProductAttention

    one = DotProductAttention(c.heads, c.head_channels, qkv_format="bshd", attn_mask_type="no_mask")
    return lambda q, k, v: one(q, k, v).unflatten(-1, (c.heads, -1))


def mark() -> Any:
    if not GPU:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(one: Any, other: Any) -> float:
    return one.elapsed_time(other) / 1e3 if GPU else other - one


def release() -> None:
    gc.collect()
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def turn(row: str, settings: TrainDiffusion, here: ranks.Here, text: int, warm: int, steps: int,
         profile: bool) -> dict[str, Any]:  # fmt: skip
    """Seconds of steps, memory, the losses."""
    one = Row(row, settings, here, text)
    for _ in range(warm):
        one.step()
    marks = [one.step() for _ in range(steps)]
    if GPU:
        torch.cuda.synchronize()
    found = {
        "step": [between(a, c) for a, _, c in marks], "both": [between(a, b) for a, b, _ in marks],
        "memory": torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0, "losses": one.losses,
    }  # fmt: skip
    if profile:
        print_profile(row, one.step)
    return found


def print_profile(row: str, work: Callable[[], object]) -> None:
    """Of a step: shares of kinds of kernels, and the longest of each."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA if GPU else
                                            torch.profiler.ProfilerActivity.CPU]) as seen:  # fmt: skip
        work()
        if GPU:
            torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    spans = []
    for event in seen.events():
        if (event.device_type == torch.autograd.DeviceType.CUDA) == GPU and not event.is_user_annotation:
            taken = event.time_range.elapsed_us() if GPU else event.self_cpu_time_total
            spans.append((event.time_range.start, event.time_range.end))
            entry = times.setdefault(event.name, [0.0, 0])
            entry[0] += taken / 1e3
            entry[1] += 1
    whole = busy = 0.0
    if spans:
        spans.sort()
        end = spans[0][0]
        for a, b in spans:
            busy += max(0.0, b - max(a, end)) / 1e3
            end = max(end, b)
        whole = (end - spans[0][0]) / 1e3
    kinds: dict[str, list[tuple[float, int, str]]] = {}
    for name, (taken, calls) in times.items():
        kinds.setdefault(kind_of(name), []).append((taken, int(calls), name))
    print(f"  profile of {row}: {whole:.1f} ms, of which idle {whole - busy:.1f} ms")
    for kind, found in sorted(kinds.items(), key=lambda one: -sum(taken for taken, _, _ in one[1])):
        total = sum(taken for taken, _, _ in found)
        print(f"    {kind:18} {total:9.1f} ms {total / max(whole, 1e-9):6.1%}")
        for taken, calls, name in sorted(found, reverse=True)[: 8 if kind == "elementwise, rest" else 5]:
            print(f"        {taken:9.2f} ms {calls:6} x {taken / calls * 1e3:9.1f} us  {name[:120]}", flush=True)


def seconds(run: Callable[[], object], rounds: int = 3, warm: int = 1) -> float:
    times = []
    for i in range(warm + rounds):
        began = mark()
        run()
        ended = mark()
        if GPU:
            torch.cuda.synchronize()
        if i >= warm:
            times.append(between(began, ended))
    return statistics.median(times)


def alone(c: Config, tokens: int, text: int, work: float, device: torch.device) -> None:
    """Prints the time of all blocks' self-attention by each library, and of their matrices, forward and backward."""
    head = (c.heads, c.head_channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    def tell(name: str, attention: Callable[..., Tensor], around: Callable[[], Any] = contextlib.nullcontext) -> float:
        qkv = [random(1, tokens, *head) for _ in range(3)]
        kept: list[Tensor] = []

        def forward() -> None:
            with around():
                kept[:] = [attention(*qkv)]

        try:
            forward()
            gradient = torch.ones_like(kept[0])
            ahead = seconds(forward)
            back = seconds(lambda: kept[0].backward(gradient, retain_graph=True))
        except Exception as error:
            print(f"  attention alone, {name:24} {type(error).__name__}: {str(error)[:150]}")
            return float("inf")
        done = 4 * tokens**2 * c.channels
        print(f"  attention alone, {name:24} forward {1e3 * ahead:8.2f} ms {done / ahead / 1e12:5.0f} TFLOP/s, "
              f"backward {1e3 * back:8.2f} ms {2.5 * done / back / 1e12:5.0f}", flush=True)  # fmt: skip
        return c.blocks * (ahead + back)

    best = tell("ours (PyTorch's SDPA)", attend)
    if GPU:
        from transformer_engine.pytorch import autocast

        best = min(best, tell("transformer-engine", te_attention(c)))
        tell("transformer-engine, FP8", te_attention(c),
             lambda: autocast(enabled=True, recipe=attention_too()))  # fmt: skip
    matrices = 0.0
    for inside, outside, count in ((c.channels, c.channels, 6), (c.channels, MLP * c.channels, 1),
                                   (MLP * c.channels, c.channels, 1)):  # fmt: skip
        x, w = random(tokens, inside), random(outside, inside)
        gradient = torch.ones(tokens, outside, device=device, dtype=torch.bfloat16)
        taken = seconds(lambda x=x, w=w, g=gradient: nn.functional.linear(x, w).backward(g))
        print(f"  matrix alone {inside} x {outside}: {6 * tokens * inside * outside / taken / 1e12:.0f} TFLOP/s")
        matrices += count * c.blocks * taken
    most = 3 * work / (best + matrices) / PEAK
    print(f"  self-attention {best:.3f} s, matrices {matrices:.3f} s: MFU at most {most:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="predict2.5-2b")
    parser.add_argument("--only", default=MAIN)
    parser.add_argument("--sizes", default="480")
    parser.add_argument("--recompute", action="append", default=[])
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--budget", type=float, default=450)
    parser.add_argument("--out", type=Path)
    for flag in ("--alone", "--profile", "--tiny"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    begun = time.monotonic()
    torch._dynamo.config.recompile_limit = 64  # rows are built anew in each round
    here = ranks.start()
    if here.rank:
        sys.stdout = Path(os.devnull).open("w")
    told: list[dict[str, Any]] = []
    for size in args.sizes.split(","):
        told += of_size(args, size, here, begun)
        if args.out and not here.rank:
            about = {"arguments": {name: str(value) for name, value in vars(args).items()}, "torch": torch.__version__,
                     "device": torch.cuda.get_device_name() if GPU else "CPU"}  # fmt: skip
            args.out.write_text(json.dumps(about | {"rows": told}, indent=1))
    dist.destroy_process_group()


def of_size(args: argparse.Namespace, size: str, here: ranks.Here, begun: float) -> list[dict[str, Any]]:
    rows = args.only.split(",")
    text = 16 if args.tiny else 512
    c = settings_of("eager", args.model, size, args.tiny, args.blocks, "none")
    [latent], config = c.latents(c.compression or (4, 8)), c.config
    work = flops(config, *latent, text)
    print(f"{args.model}: {parameters(config) / 1e9:.2f}e9 weights, {config.blocks} blocks, {latent.tokens} tokens, "
          f"attention by {backend(here.device, torch.bfloat16, config.head_channels)}", flush=True)  # fmt: skip
    if args.alone:
        alone(config, latent.tokens, text, work, here.device)
    turns: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    failed: dict[str, str] = {}
    ways = {row: ["none"] if args.tiny else ways_of(row, args, size, here.count) for row in rows}
    takes: dict[str, float] = {}
    for number in range(args.rounds):
        for row in rows:
            left = args.budget - (time.monotonic() - begun)
            leave = torch.tensor(row in failed or left < takes.get(row, max(takes.values(), default=0.0)))
            dist.broadcast(leave, 0, group=here.words)  # by rank 0's clock
            if leave:
                continue
            since = time.monotonic()
            while row not in failed and len(turns[row]) == number:
                release()
                try:
                    settings = settings_of(row, args.model, size, args.tiny, args.blocks, ways[row][0])
                    found = turn(row, settings, here, text, 1 if number else 2, args.steps, args.profile and not number)
                    turns[row].append(found)
                    print(f"  round {number + 1} {size} {row:14} {[round(t, 4) for t in found['step']]} s", flush=True)
                except torch.OutOfMemoryError as error:
                    print(f"  {size} {row}: out of memory with {ways[row][0]}", flush=True)
                    if len(ways[row]) == 1:
                        failed[row] = str(error)[:200]
                    else:
                        del ways[row][0]
                except Exception as error:
                    failed[row] = f"{type(error).__name__}: {str(error)[:300]}"
                    print(f"  {size} {row} failed: {failed[row]}", flush=True)
                    traceback.print_exc()
            takes[row] = time.monotonic() - since
    release()
    return [summary(row, size, ways[row][0], turns[row], failed.get(row), latent.tokens, work) for row in rows]


def ways_of(row: str, args: argparse.Namespace, size: str, ranks: int) -> list[str]:
    """What may be computed again, beginning with the first whose estimate is below the GPU's memory; told."""
    asked, names = dict(one.split("=") for one in args.recompute), (f"{size}:{row}", size)
    said = [asked[name] for name in names if name in asked]
    said += [RECOMPUTE[name] for name in (f"{size} {args.model}", *names) if name in RECOMPUTE]
    ways = said[0].split(" | ")
    there = torch.cuda.get_device_properties(0).total_memory if GPU else float("inf")
    sizes = [estimated(settings_of(row, args.model, size, False, args.blocks, words), ranks) for words in ways]
    print(f"  {size} {row}: estimated " + ", ".join(f"{words} {of / 2**30:.1f} GiB" for words, of in
          zip(ways, sizes, strict=True)) + f"; the GPU has {there / 2**30:.1f}", flush=True)  # fmt: skip
    return ways[next((at for at, of in enumerate(sizes) if of < there), len(ways) - 1) :]


def estimated(settings: TrainDiffusion, ranks: int) -> float:
    """Bytes of a GPU, where each rank has a sample."""
    shapes = tuple(msgspec.structs.replace(shape, batch=ranks) for shape in settings.shapes)
    settings = msgspec.structs.replace(settings, shapes=shapes)
    return sum(estimate_diffusion.memory(settings, Place(ranks=ranks, latents=True)).values())


def summary(row: str, size: str, words: str, turns: list[dict[str, Any]], failed: str | None, tokens: int,
            work: float) -> dict[str, Any]:  # fmt: skip
    """Printed, and for the file."""
    said: dict[str, Any] = {"row": row, "size": size, "tokens": tokens, "recompute": words}
    name = f"{size} {row:14} recompute {words:22}"
    if not turns:
        print(f"{name} {failed or 'no time left'}", flush=True)
        return said | {"failed": failed or "no time left"}
    step, both = (statistics.median(t for turn in turns for t in turn[kind]) for kind in ("step", "both"))
    said |= {
        "step_seconds": step, "forward_backward_seconds": both, "update_seconds": step - both,
        "steps": sum(len(turn["step"]) for turn in turns), "all": [t for turn in turns for t in turn["step"]],
        "tflops": 3 * work / step / 1e12, "mfu": 3 * work / step / PEAK, "mfu_forward_backward": 3 * work / both / PEAK,
        "memory_gib": max(turn["memory"] for turn in turns), "losses": turns[0]["losses"],
    }  # fmt: skip
    print(f"{name} step {step:8.4f} s (forward, backward {both:8.4f})  {said['tflops']:4.0f} TFLOP/s  MFU "
          f"{said['mfu']:5.1%} (forward, backward {said['mfu_forward_backward']:5.1%})  {said['memory_gib']:5.1f} GiB  "
          f"loss {turns[0]['losses'][-1]:.4f}  {said['steps']} steps", flush=True)  # fmt: skip
    return said


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*torch.distributed.*|.*NCCL.*|.*FSDP.*")
    main()
