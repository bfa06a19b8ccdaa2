"""What training an autoregressive model costs on one GPU, beside plain megatron-core with transformer-engine.

    python tests/bench_ar.py [--model ar-4b] [--only ours,plain] [--precision bf16,fp8-delayed,fp8-current]
                             [--microbatches 1,8] [--recompute none] [--kernels fused,torch] [--profile] [--out FILE]
    torchrun --nproc-per-node 2 tests/bench_ar.py --only ours --tensor 1,2        several GPUs

Random weights and tokens, sequences of the model's length, one a microbatch. `plain` is megatron-core's GPTModel with
transformer-engine's layers at the same sizes (1D RoPE, its own cross entropy, no z-loss), with the same distributed
optimizer. Both run in this process, one after the other. Per row: milliseconds of forward and backward of a microbatch,
and of a whole step (all microbatches, gradients reduced, norm, clip, AdamW); tokens a second, TFLOP/s and MFU of the
step. FLOPs: causal attention counted once, recomputation not counted, hpc.models.ar.presets; MFU against 989 TFLOP/s
(dense bfloat16) whatever the precision. --profile prints the ten kernels that take longest in a step of each row.
Of several GPUs --tensor says how many share a sequence; the others are data-parallel, each with its own microbatches,
and TFLOP/s and MFU are those of one GPU.

Without a GPU: ar-tiny in float32 over torch's layers, to see that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel, gpt_layer_specs
from torch import Tensor

from hpc.models.ar import cpu, keys
from hpc.models.ar.model import config
from hpc.models.ar.presets import Preset, preset
from hpc.train.ar_engine import Compute, Engine, Microbatch, settings_of
from hpc.train.settings.ar import Layout
from hpc.train.settings.optimizer import Optimizer
from hpc.train.token_data import sample

PEAK = 989e12  # dense bfloat16, of an H100 SXM and an H200 alike
GPU = torch.cuda.is_available()


class Plain(Engine):
    """megatron-core's own model in the same harness."""

    def _built(self, weights: Mapping[str, Tensor]) -> torch.nn.Module:
        fields = settings_of(self.preset, self.layout, self.compute)
        fields |= {"perform_initialization": True, "bias_dropout_fusion": GPU, "gradient_accumulation_fusion": False}
        self.config = config(self.preset, **fields)
        if self.compute.backend == "transformer_engine":
            spec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True)
        else:
            spec = gpt_layer_specs.get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
        self.places = torch.arange(self.preset.length, device=self.device)[None]
        return GPTModel(self.config, spec, self.preset.vocab, self.preset.length, position_embedding_type="rope",
                        rotary_base=500_000)  # fmt: skip

    def _forward(self, batches: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable]:
        batch = next(batches)
        labels = batch.labels_BS.clamp(min=0).to(self.device)
        out = model(batch.tokens_BS.to(self.device), self.places, None, labels=labels)
        return out, partial(self._mean, batch.mask_BS.to(self.device))

    def _mean(self, mask_BS: Tensor, losses_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (losses_BS * mask_BS).sum() / mask_BS.sum()
        return loss, {"both": torch.stack([loss, torch.zeros_like(loss)]).detach()}


def batches(model: Preset, count: int) -> list[Microbatch]:
    generator = torch.Generator().manual_seed(1)
    before, after = (
        ([], []) if model.context_dim is None else ([model.bov], [model.pad] * (model.length - model.video_tokens))
    )
    made = []
    for _ in range(count):
        ids = torch.randint(0, model.classes, (model.video_tokens,), generator=generator).numpy()
        one = sample(ids, before, after, model.shape, given=1)
        context = None if model.context_dim is None else torch.randn(512, 1, model.context_dim, generator=generator)
        made.append(Microbatch(one.tokens[None], one.labels[None], one.loss_mask[None], context))
    return made


def seconds(work: Callable[[], object], times: int, warm: int, before: Callable[[], object] = lambda: None) -> float:
    """Median of the work, without what comes before it."""
    taken = []
    for number in range(warm + times):
        before()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= warm:
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def measured(engine: Engine, model: Preset, counts: list[int], profile: bool) -> Iterator[dict[str, Any]]:
    """Each rank calls it."""
    data, share = batches(model, max(counts)), engine.data_ranks / dist.get_world_size()  # of a sequence, a GPU's
    for count in counts:
        some, last = data[:count], []
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        times = 5 if count == 1 else 2
        step = seconds(
            lambda some=some, last=last: last.append(engine.step(some, 1e-5)), times, warm=4 if count == 1 else 1
        )
        both = seconds(lambda some=some: engine.run(some), times, warm=0, before=engine.clear) / count
        flops = model.flops() * count * share
        yield {
            "microbatches": count,
            "forward_backward_ms": both * 1e3,
            "step_ms": step * 1e3,
            "update_ms": (step - both * count) * 1e3,
            "tokens_per_second": model.length * count * engine.data_ranks / step,
            "tflops": flops / step / 1e12,
            "mfu_percent": flops / step / PEAK * 100,
            "mfu_forward_backward_percent": model.flops() * share / both / PEAK * 100,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0,
            "loss": last[-1].loss,
        }
        if profile:
            print_profile(lambda some=some: engine.step(some, 1e-5))


def print_profile(work: Callable[[], object]) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if GPU else [])
    with torch.profiler.profile(activities=kinds) as seen:
        work()
        torch.cuda.synchronize()
    events: dict[str, list[float]] = {}
    whole = 0.0
    for event in seen.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == GPU and not getattr(event, "is_user_annotation", False):
            spent = event.time_range.elapsed_us() if GPU else event.self_cpu_time_total
            whole += spent
            one = events.setdefault(event.name, [0.0, 0])
            one[0], one[1] = one[0] + spent, one[1] + 1
    for name, (spent, calls) in sorted(events.items(), key=lambda item: -item[1][0])[:10]:
        print(f"    {spent / whole * 100:5.1f} %  {spent / 1e3:9.2f} ms  {calls:5.0f} x  {name[:110]}", flush=True)


def release() -> None:
    parallel_state.destroy_model_parallel()
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ar-4b" if GPU else "ar-tiny")
    parser.add_argument("--only", default="plain,ours")
    parser.add_argument("--precision", default="bf16,fp8-delayed,fp8-current" if GPU else "fp32")
    parser.add_argument("--microbatches", default="1,8" if GPU else "1,2")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--kernels", default="fused" if GPU else "torch")
    parser.add_argument("--tensor", default="1", help="ranks that share a sequence")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="rows as lines of JSON, too")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    model = preset(chosen.model)
    if not GPU:
        model = msgspec.structs.replace(model, layers=2, classes=512, vocab=512 if model.context_dim is None else 576,
                                        bov=512, pad=514)  # fmt: skip
    if GPU:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if GPU else "gloo", **alone)
    say = print if dist.get_rank() == 0 else lambda *words, **more: None
    counts = [int(one) for one in chosen.microbatches.split(",")]
    say(f"{chosen.model}: {model.parameters / 1e9:.3f} billion parameters, {model.length:,} tokens, "
        f"{model.flops() / 1e12:.1f} TFLOP a sequence; {dist.get_world_size()} x "
        f"{torch.cuda.get_device_name() if GPU else 'CPU'}")  # fmt: skip
    variants = [
        (who, precision, recompute, kernels, int(tensor))
        for tensor in chosen.tensor.split(",")
        for precision in chosen.precision.split(",")
        for who in chosen.only.split(",")
        for recompute in chosen.recompute.split(",")
        for kernels in (chosen.kernels.split(",") if who == "ours" else ["torch"])
        if who == "ours" or model.context_dim is None
    ]
    for who, precision, recompute, kernels, tensor in variants:
        compute = Compute(precision=precision, recompute=recompute, kernels=kernels,  # type: ignore[arg-type]
                          backend="transformer_engine" if GPU else "local")  # fmt: skip
        weights = keys.Initial(model, lambda name: torch.Generator("cuda" if GPU else "cpu").manual_seed(len(name)))
        name = {"who": who, "precision": precision, "recompute": recompute, "kernels": kernels, "tensor": tensor}
        try:
            engine = (Plain if who == "plain" else Engine)(model, Layout(tensor=tensor), compute, Optimizer(), weights)
            for row in measured(engine, model, counts, chosen.profile):
                say("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                              for key, value in (name | row).items()), flush=True)  # fmt: skip
                if chosen.out and dist.get_rank() == 0:
                    with chosen.out.open("a") as file:
                        file.write(json.dumps({"model": chosen.model} | name | row) + "\n")
        except (RuntimeError, ValueError, AssertionError, ImportError) as error:  # one row that fails leaves the others
            print(name, f"FAILED: {type(error).__name__}: {str(error)[:600]}", flush=True)
        engine = None
        release()
    dist.destroy_process_group()


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu.stand_in())
        main()
