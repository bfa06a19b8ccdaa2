"""Each kernel alone at training shapes, beside others: the README's tables.   python tests/bench_kernels.py [--only X]

Every row is one way to the same result: ours, plain PyTorch (eager), torch.compile of that, and transformer-engine and
Liger-Kernel where they can be imported. Times are medians over calls with a cold L2 cache; the share is that of 4.28
TB/s (what a copy reaches on an H200) if only the bytes that must move count: inputs read once, outputs written once.
Results are compared with the formula in fp32 before anything is timed.

--sweep tries other block sizes, warps and grids for our kernels instead. Without a GPU shapes are tiny and times mean
nothing: Triton's interpreter runs the kernels, which shows that the program works.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GPU = torch.cuda.is_available()
if not GPU:  # before anything imports Triton
    import os

    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(Path(__file__).parent / "kernels"))
    import interpreted  # noqa: F401

from hpc.kernels import adamw_ema, cross_entropy, e4m3, gated, modulate, qk_norm_rope  # noqa: E402

COPY = 4.28e12  # bytes a second
DEVICE = torch.device("cuda" if GPU else "cpu")
BF16, EPS, Z = torch.bfloat16, 1e-6, 1e-4

Call = Callable[[], Sequence[Tensor]]


class Way(NamedTuple):
    """One way to compute an op: a call, what its gradients are asked for, and of which outputs they come."""

    call: Call
    leaves: Sequence[Tensor] = ()
    grads: Sequence[Tensor] = ()
    right: bool = True
    """False: not the same result (another norm, no z-loss), so it is timed and not compared."""


class Op(NamedTuple):
    name: str
    forward_bytes: float
    backward_bytes: float
    ways: dict[str, Callable[[], Way]]
    reference: Callable[[], Way] | None = None


def small(n: int, tiny: int) -> int:
    return n if GPU else tiny


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def median(call: Callable[[], Any], before: Callable[[], Any] = lambda: None, least: int = 20) -> float:
    """Seconds of a call, on the GPU's clock; `before` is not counted."""
    if not GPU:
        before()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    flush = torch.empty(64 * 2**20, dtype=torch.float32, device=DEVICE)
    for _ in range(3):
        before()
        call()
    pairs = []
    for _ in range(least):
        before()
        flush.zero_()
        torch.cuda._sleep(2_000_000)  # 1 ms, in which the CPU gets ahead: launches are not what is measured
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def both(way: Way) -> tuple[float, float]:
    """Seconds of forward and of backward (0 if there is none)."""
    forward = median(way.call)
    if not way.leaves:
        return forward, 0.0
    kept: list[Sequence[Tensor]] = []

    def again() -> None:
        kept.clear()
        kept.append(way.call())

    return forward, median(lambda: torch.autograd.grad(kept[0], way.leaves, way.grads), again)


def off(way: Way, right: Way) -> float:
    """The largest relative distance of an output or gradient from what is right."""

    def results(one: Way) -> list[Tensor]:
        out = list(one.call())
        grads = torch.autograd.grad(out, one.leaves, one.grads) if one.leaves else ()
        return [t.detach() for t in (*out, *grads)]

    worst = 0.0
    for ours, exact in zip(results(way), results(right), strict=True):
        distance = (ours.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-20)
        worst = max(worst, float("inf") if distance.isnan() else float(distance))
    return worst


def optional(module: str, what: str) -> Any:
    """An attribute of a package that need not be there."""
    return getattr(importlib.import_module(module), what)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False) if GPU else function


# Norm and rotation of queries and keys


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As models write it: norm, then rotation in fp32."""
    return rotate(F.rms_norm(x, x.shape[-1:], weight, EPS).float(), cos, sin).to(x.dtype)


def qk(name: str, s: int, groups: int, per_group: int, packed: bool, d: int = 128) -> Op:
    """Layout [S, 1, H, D]; packed as linear_qkv of megatron-core gives it, or q and k of linears of their own."""
    hq, width = groups * per_group, (per_group + 2) * groups * d
    angle = torch.randn(s, d // 2, device=DEVICE)
    cos, sin = angle.cos(), angle.sin()
    weights = [leaf(1 + 0.1 * randn(d)) for _ in range(2)]
    qkv = leaf(randn(s, 1, width)) if packed else None
    q, k = leaf(randn(s, 1, hq, d)), leaf(randn(s, 1, groups, d))
    grads = [randn(s, 1, hq, d), randn(s, 1, groups, d)] + ([randn(s, 1, groups, d)] if packed else [])
    leaves = [qkv, *weights] if packed else [q, k, *weights]

    def split() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if qkv is None:
            return q, k, ()
        parts = qkv.unflatten(2, (groups, -1, d))
        return parts[..., :-2, :].flatten(2, 3), parts[..., -2, :], (parts[..., -1, :].contiguous(),)

    def ours() -> Way:
        def call() -> Sequence[Tensor]:
            if qkv is not None:
                return qk_norm_rope.qkv_norm_rope(qkv, *weights, cos, sin, groups=groups, eps=EPS, kernels="fused")
            return qk_norm_rope.qk_norm_rope(q, k, *weights, cos, sin, eps=EPS, kernels="fused")

        return Way(call, leaves, grads)

    def exact() -> Way:
        def call() -> Sequence[Tensor]:
            a, b, v = split()
            return *qk_norm_rope.qk_norm_rope_reference(a, b, *weights, cos, sin, eps=EPS), *v

        return Way(call, leaves, grads)

    def eager(wrap: Callable[..., Any] = lambda f: f) -> Way:
        c, n = cos[:, None, None], sin[:, None, None]

        def whole() -> Sequence[Tensor]:
            a, b, v = split()
            return norm_rotate(a, weights[0], c, n), norm_rotate(b, weights[1], c, n), *v

        return Way(wrap(whole), leaves, grads)

    def engine() -> Way:
        rms = optional("transformer_engine.pytorch", "RMSNorm")
        rope = optional("transformer_engine.pytorch.attention.rope", "apply_rotary_pos_emb")
        norms = [rms(d, eps=EPS, device=DEVICE, params_dtype=BF16) for _ in range(2)]
        freqs = torch.cat((angle, angle), dim=-1)[:, None, None]
        for norm, weight in zip(norms, weights, strict=True):
            norm.weight.data.copy_(weight)

        def call() -> Sequence[Tensor]:
            a, b, v = split()
            return *(rope(norm(t), freqs, tensor_format="sbhd", fused=True)
                     for norm, t in zip(norms, (a, b), strict=True)), *v  # fmt: skip

        return Way(call, [*leaves[:-2], *(norm.weight for norm in norms)], grads)

    def liger() -> Way:
        norm = optional("liger_kernel.ops.rms_norm", "LigerRMSNormFunction").apply
        rope = optional("liger_kernel.ops.rope", "LigerRopeFunction").apply
        wide = [torch.cat((t, t), dim=-1)[None] for t in (cos, sin)]

        def call() -> Sequence[Tensor]:
            a, b, v = split()
            a, b = (norm(t.contiguous(), w, EPS, 0.0, "llama", False) for t, w in zip((a, b), weights, strict=True))
            a, b = rope(a.permute(1, 2, 0, 3), b.permute(1, 2, 0, 3), *wide)  # [B, H, S, D]
            return a.permute(2, 0, 1, 3), b.permute(2, 0, 1, 3), *v

        return Way(call, leaves, [g.clone() for g in grads])  # its backward writes over them

    heads = s * d * 2
    table = s * d * 4
    moved = hq + (3 if packed else 1) * groups - (groups if packed else 0)
    return Op(
        name, 2 * moved * heads + table, (3 * moved - (groups if packed else 0)) * heads + table,
        {"ours": ours, "eager": eager, "torch.compile": lambda: eager(compiled), "transformer-engine": engine,
         "Liger-Kernel": liger}, exact,
    )  # fmt: skip


# Cross entropy with z-loss


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.float()
    return F.cross_entropy(x, labels, reduction="none"), torch.logsumexp(x, dim=-1)


def entropy(name: str, n: int, classes: int) -> Op:
    labels = torch.randint(classes, (n,), device=DEVICE)
    source = randn(n, classes) * 3
    grads = [torch.full((n,), 1 / n, device=DEVICE), 2 * Z / n * randn(n, dtype=torch.float32)]

    def ours() -> Way:
        logits = leaf(source.clone())  # its values become gradients

        def call() -> Sequence[Tensor]:
            return cross_entropy.cross_entropy(logits, labels, kernels="fused")

        return Way(call, [logits], grads)

    def eager(wrap: Callable[..., Any] = lambda f: f) -> Way:
        logits, loss = leaf(source), wrap(plain_loss)
        return Way(lambda: loss(logits, labels), [logits], grads)

    def engine() -> Way:
        loss = optional("transformer_engine.pytorch.cross_entropy", "parallel_cross_entropy")
        logits = leaf(source.clone()[None])
        return Way(lambda: (loss(logits, labels[None], 0.0, False, None),), [logits], [grads[0][None]], right=False)

    def liger() -> Way:
        loss = optional("liger_kernel.ops.cross_entropy", "LigerCrossEntropyFunction").apply
        logits = leaf(source.clone())
        one = torch.ones((), device=DEVICE)
        return Way(lambda: loss(logits, labels, None, -100, Z, 0.0, "mean")[:1], [logits], [one], right=False)

    size = 2 * n * classes
    return Op(
        name, size, 2 * size,
        {"ours": ours, "eager": eager, "torch.compile": lambda: eager(compiled),
         "transformer-engine (no z-loss)": engine, "Liger-Kernel (gradient in its forward)": liger}, eager,
    )  # fmt: skip


# Gated residual, LayerNorm, modulation


def plain_modulate(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As models write it, in bf16."""
    z = x + gate[:, None] * y
    return z, F.layer_norm(z, z.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def modulation(name: str, g: int, n: int, d: int) -> Op:
    x, y = leaf(randn(g, n, d)), leaf(randn(g, n, d))
    vectors = [leaf(0.5 * randn(g, d)) for _ in range(3)]
    leaves, grads = [x, y, *vectors], [randn(g, n, d), randn(g, n, d)]

    def ours() -> Way:
        return Way(lambda: modulate.gated_modulate(*leaves, kernels="fused"), leaves, grads)

    def exact() -> Way:
        return Way(lambda: modulate.gated_modulate_reference(*leaves), leaves, grads)

    def eager(wrap: Callable[..., Any] = lambda f: f) -> Way:
        whole = wrap(plain_modulate)
        return Way(lambda: whole(*leaves), leaves, grads)

    def engine() -> Way:
        norm = optional("transformer_engine.pytorch", "LayerNorm")(d, eps=EPS, device=DEVICE, params_dtype=BF16)

        def call() -> Sequence[Tensor]:
            z = x + vectors[0][:, None] * y
            return z, norm(z) * (1 + vectors[2][:, None]) + vectors[1][:, None]

        return Way(call, leaves, grads)

    def liger() -> Way:
        norm = optional("liger_kernel.ops.layer_norm", "LigerLayerNormFunction").apply
        one, zero = torch.ones(d, dtype=BF16, device=DEVICE), torch.zeros(d, dtype=BF16, device=DEVICE)

        def call() -> Sequence[Tensor]:
            z = x + vectors[0][:, None] * y
            return z, norm(z, one, zero, EPS) * (1 + vectors[2][:, None]) + vectors[1][:, None]

        return Way(call, leaves, grads)

    size = 2 * g * n * d
    return Op(
        name, 4 * size, 6 * size,
        {"ours": ours, "eager": eager, "torch.compile": lambda: eager(compiled),
         "transformer-engine's LayerNorm": engine, "Liger-Kernel's LayerNorm": liger}, exact,
    )  # fmt: skip


def plain_gated(x: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor]:
    return (x + gate[:, None] * y,)


def residual(name: str, g: int, n: int, d: int) -> Op:
    leaves, grads = [leaf(randn(g, n, d)), leaf(randn(g, n, d)), leaf(randn(g, d))], [randn(g, n, d)]

    def way(function: Callable[..., Sequence[Tensor]]) -> Way:
        return Way(lambda: function(*leaves), leaves, grads)

    return Op(
        name, 6 * g * n * d, 6 * g * n * d,
        {"ours": lambda: way(lambda *t: (gated.gated(*t, kernels="fused"),)), "eager": lambda: way(plain_gated),
         "torch.compile": lambda: way(compiled(plain_gated))}, lambda: way(lambda *t: (gated.gated_reference(*t),)),
    )  # fmt: skip


def modulation_fp8(name: str, g: int, n: int, d: int) -> Op:
    """Forward only: out in FP8 by rows and transposed. The scale is that of out's own maximum, so that z is read again
    once it is known: 10 bytes an element; with a scale that is given 8 would do."""
    inputs = [randn(g, n, d), randn(g, n, d), *(0.5 * randn(g, d) for _ in range(3))]

    def way(fp8_scale: Tensor | None = None, kernels: str = "fused") -> Way:
        made: list[e4m3.Quantized] = []

        def wrap(quantized: e4m3.Quantized) -> Tensor:
            made[:] = [quantized]
            return quantized.rows_ND

        def call() -> Sequence[Tensor]:
            z, rows = modulate.gated_modulate_fp8(*inputs, wrap=wrap, fp8_scale=fp8_scale, kernels=kernels)
            return z, rows, made[0].columns_DN, made[0].amax

        return Way(call, right=fp8_scale is None)

    def delayed() -> Way:
        return way(torch.full((1,), 32.0, device=DEVICE))

    def engine() -> Way:
        kind = optional("transformer_engine.pytorch.tensor.float8_tensor", "Float8CurrentScalingQuantizer")
        fp8 = optional("transformer_engine_torch", "DType").kFloat8E4M3
        cast = kind(fp8, DEVICE)

        def call() -> Sequence[Tensor]:
            z, out = modulate.gated_modulate(*inputs, kernels="fused")
            cast(out.flatten(0, 1))
            return z, out

        return Way(call, right=False)

    return Op(name, 10 * g * n * d, 0, {"ours": way, "ours, scale given": delayed,
              "ours in bf16, transformer-engine's cast": engine}, lambda: way(kernels="torch"))  # fmt: skip


# AdamW, average, copy


def adamw(name: str, tensors: int, side: int) -> Op:
    shapes = [(side, side)] * tensors + [(side,)] * tensors
    how = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    count = sum(torch.Size(s).numel() for s in shapes)

    def state() -> list[list[Tensor]]:
        """params, grads, exp_avgs, exp_avg_sqs, averages"""
        torch.manual_seed(0)
        lists = [[0.02 * randn(*s, dtype=torch.float32) for s in shapes] for _ in range(3)]
        return [*lists, [t.square() for t in lists[2]], [p.clone() for p in lists[0]]]

    def ours(kernels: str = "fused") -> Way:
        params, grads, m, v, average = state()
        copies = [p.to(BF16) for p in params]
        scale = torch.ones((), device=DEVICE)

        def call() -> Sequence[Tensor]:
            adamw_ema.adamw_ema(params, grads, m, v, **how, step=7, averages=[average], average_betas=[0.5],
                                copies=copies, grad_scale=scale, kernels=kernels)  # fmt: skip
            return [*params, *average, *copies]

        return Way(call)

    def others(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> Way:
        params, grads, m, v, average = state()
        copies = [p.to(BF16) for p in params]
        weights = [torch.nn.Parameter(p) for p in params]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer = make(weights)
        if isinstance(optimizer, torch.optim.AdamW):
            where = DEVICE if optimizer.defaults["fused"] else torch.device("cpu")
            for weight, a, b in zip(weights, m, v, strict=True):
                optimizer.state[weight] = {"step": torch.tensor(6.0, device=where), "exp_avg": a, "exp_avg_sq": b}

        def call() -> Sequence[Tensor]:
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 0.5)
                torch._foreach_copy_(copies, params)
            return [*params, *average, *copies]

        return Way(call)

    def engine() -> Way:
        kind = optional("transformer_engine.pytorch.optimizers", "FusedAdam")
        return others(lambda params: kind(params, **how))._replace(right=False)  # it counts steps from its own first

    def torchs(**form: bool) -> Way:
        return others(lambda params: torch.optim.AdamW(params, **how, **form))

    return Op(
        name, 38 * count, 0,
        {"ours": ours, "torch.optim.AdamW(foreach)": lambda: torchs(foreach=True),
         "torch.optim.AdamW(fused)": lambda: torchs(fused=True), "transformer-engine's FusedAdam": engine},
        lambda: ours("torch"),
    )  # fmt: skip


OPS: dict[str, list[Callable[[], Op]]] = {
    "qk_norm_rope": [
        lambda: qk("AR-4B, packed, 12,800 x (32 + 8 + 8) x 128", small(12800, 3), small(8, 2), 4, True),
        lambda: qk("DiT-2B 720p, 84,480 x (16 + 16) x 128", small(84480, 3), small(16, 2), 1, False),
        lambda: qk("DiT-2B 480p, 31,104 x (16 + 16) x 128", small(31104, 2), small(16, 2), 1, False),
        lambda: qk("DiT-7B, 56,320 x (32 + 32) x 128", small(56320, 2), small(32, 2), 1, False),
    ],
    "cross_entropy": [
        lambda: entropy("AR-4B, 12,800 x 64,000", small(12800, 4), small(64000, 50)),
        lambda: entropy("one of 2 ranks, 12,800 x 32,000", small(12800, 4), small(32000, 25)),
    ],
    "gated": [
        lambda: residual("DiT-2B 720p, 24 x 3,520 x 2048", small(24, 2), small(3520, 3), small(2048, 16)),
        lambda: residual("DiT-7B, 16 x 3,520 x 4096", small(16, 2), small(3520, 3), small(4096, 16)),
    ],
    "modulate": [
        lambda: modulation("DiT-2B 720p, 24 x 3,520 x 2048", small(24, 2), small(3520, 3), small(2048, 16)),
        lambda: modulation("the same as one group, 1 x 84,480 x 2048", 1, small(84480, 9), small(2048, 16)),
        lambda: modulation("DiT-2B 480p, 24 x 1,296 x 2048", small(24, 2), small(1296, 3), small(2048, 16)),
        lambda: modulation("DiT-7B, 16 x 3,520 x 4096", small(16, 1), small(3520, 3), small(4096, 16)),
    ],
    "modulate_fp8": [
        lambda: modulation_fp8("DiT-2B 720p, 24 x 3,520 x 2048", small(24, 2), small(3520, 3), small(2048, 16)),
        lambda: modulation_fp8("DiT-7B, 16 x 3,520 x 4096", small(16, 2), small(3520, 3), small(4096, 16)),
    ],
    "adamw_ema": [lambda: adamw("500M parameters", small(30, 2), small(4096, 5))],
}


def settings(**choices: Sequence[int]) -> list[dict[str, int]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


SWEEPS: dict[str, tuple[Any, str, list[dict[str, int]], list[dict[str, int]]]] = {
    "qk_norm_rope": (qk_norm_rope, "config", settings(heads=(8, 16, 32), warps=(2, 4, 8), tokens=(1, 2)),
                     settings(heads=(4, 8, 16), warps=(1, 2, 4), waves=(5, 10, 20, 30))),
    "cross_entropy": (cross_entropy, "config", settings(BLOCK=(2048, 4096, 8192, 16384), num_warps=(4, 8, 16)),
                      settings(BLOCK=(1024, 2048, 4096, 8192, 16384), num_warps=(4, 8, 16))),
    "gated": (gated, "config", settings(warps=(4, 8, 16), waves=(2, 4, 8, 16)), []),
    "modulate": (modulate, "config", settings(warps=(4, 8), waves=(4, 8, 16, 32)),
                 settings(warps=(4, 8, 16), waves=(1, 2, 3, 4))),
    "modulate_fp8": (e4m3, "config", settings(BLOCK_L=(32, 64, 128), BLOCK_D=(64, 128, 256), num_warps=(2, 4)), []),
    "adamw_ema": (adamw_ema, "config", settings(BLOCK=(512, 1024, 2048, 4096), num_warps=(4, 8)), []),
}  # fmt: skip


def sweep(op: Op, kernel: str) -> None:
    """Times of ours under other settings, the best first; those that cannot be launched say so."""
    module, name, *passes = SWEEPS[kernel]
    original = getattr(module, name)
    for backward, tries in enumerate(passes):
        found = []
        for values in tries:

            def patched(*args: Any, _now: dict[str, int] = values, _pass: bool = bool(backward), **kw: Any) -> Any:
                return {**original(*args, **kw), **(_now if kw.get("backward", False) == _pass else {})}

            setattr(module, name, patched)
            try:
                found.append((both(op.ways["ours"]())[backward], values))
            except Exception as error:
                print(f"    {values}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        setattr(module, name, original)
        size = (op.forward_bytes, op.backward_bytes)[backward]
        for seconds, values in sorted(found, key=lambda pair: pair[0])[:8]:
            shares = f"{seconds * 1e3:8.4f} ms {size / seconds / COPY:6.1%}"
            print(f"    {kernel}, {op.name}, {('forward', 'backward')[backward]}: {shares}  {values}", flush=True)


def compare(op: Op, kernel: str) -> bool:
    """Prints a table of all ways; whether ours is right."""
    print(
        f"\n### {kernel}: {op.name}\n\n| | forward ms | of 4.28 TB/s | backward ms | of 4.28 TB/s | both ms | off by |"
    )
    print("|---|---|---|---|---|---|---|")
    good = True
    for name, make in op.ways.items():
        try:
            way = make()
            wrong = off(way, op.reference()) if op.reference and way.right else None
            forward, backward = both(way)
        except Exception as error:
            if name == "ours":
                raise
            print(
                f"| {name} | cannot: {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''} |"
            )
            continue
        finally:
            way = None
            if GPU:
                torch.cuda.empty_cache()
        if name == "ours" and (wrong is None or wrong > 1e-2):
            good = False
        cells = [f"{forward * 1e3:.3f}", f"{op.forward_bytes / forward / COPY:.1%}"]
        cells += [f"{backward * 1e3:.3f}", f"{op.backward_bytes / backward / COPY:.1%}"] if backward else ["", ""]
        cells += [f"{(forward + backward) * 1e3:.3f}", "" if wrong is None else f"{wrong:.1e}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=OPS, help="this kernel alone; may be given several times")
    parser.add_argument("--first", action="store_true", help="of each kernel the first shape alone")
    parser.add_argument(
        "--sweep", action="store_true", help="other block sizes, warps, grids instead of other libraries"
    )
    args = parser.parse_args()
    start, good = time.monotonic(), True
    if GPU:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for kernel in args.only or OPS:
        for make in OPS[kernel][:1] if args.first else OPS[kernel]:
            torch.manual_seed(0)
            op = make()
            if args.sweep and kernel in SWEEPS:
                sweep(op, kernel)
            else:
                good &= compare(op, kernel)
            del op
            if GPU:
                torch.cuda.empty_cache()
    print(f"\n{time.monotonic() - start:.0f} s" + ("" if good else "; ours differs from the formula: see above"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
