"""What real steps of training hold on a GPU, beside what `hpc check` estimates (hpc.train.estimate).

    python tests/memory.py [--only ar,dit] [--model ar-4b] [--precision bf16,fp8-current] [--recompute none,full]
                           [--dit predict2.5-2b] [--height 432 --width 768] [--json]

One GPU, one sequence or video a step, random weights and data; latents, not videos. Two steps are taken: the peak is of
the second (torch.cuda.max_memory_allocated), its time is told too. Without a GPU: tiny models in float32 and bfloat16,
of which weights, gradients, optimizer and means are counted, to the byte.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_ar import batches
from megatron.core import parallel_state

from hpc.data.gpu_types import GIB, named
from hpc.kernels import choose
from hpc.models.ar import cpu, keys
from hpc.models.dit_presets import parameters
from hpc.train import diffusion, diffusion_model, diffusion_optimizer, ema, ranks
from hpc.train.ar import backend
from hpc.train.ar_engine import Compute, Engine
from hpc.train.diffusion_input import Inputs
from hpc.train.estimate import Estimate, Place
from hpc.train.estimate_diffusion import states
from hpc.train.loader import Batch
from hpc.train.ranks import Here
from hpc.train.settings import TrainAr, TrainDiffusion
from hpc.train.settings.ar import Lora
from hpc.train.settings.data import Shape
from hpc.train.settings.diffusion import Pictures

GPU = torch.cuda.is_available()


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of what lies on this rank."""
    return sum(ema.local(one).numel() * one.element_size() for one in tensors)


def row(what: str, held: dict[str, int], count: int, counted: int, step: Callable[[], object], found: Estimate,
        ) -> dict[str, Any]:  # fmt: skip
    """Takes a second step."""
    told: dict[str, Any] = {"what": what, "parameters": count, "parameters_estimated": counted,
                            "held": held, "estimated": found.memory}  # fmt: skip
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        assert found.times
        told |= {"seconds": time.perf_counter() - begun, "seconds_estimated": found.step,
                 "gib": torch.cuda.max_memory_allocated() / GIB, "gib_estimated": found.total / GIB}  # fmt: skip
    return told


def of_ar(settings: TrainAr, place: Place, here: Here) -> dict[str, Any]:
    model = settings.preset
    compute = Compute(precision=settings.precision, recompute=settings.recompute, kernels=settings.kernels,
                      backend=backend(settings))  # fmt: skip
    lora = settings.lora.rank if settings.lora else 0
    weights = keys.Initial(model, lambda name: torch.Generator(here.device).manual_seed(len(name)), lora)
    engine = Engine(model, settings.layout, compute, settings.optimizer, weights, settings.lora)
    data = batches(model, settings.batch)
    engine.step(data, 1e-5)
    state = [value for one in engine._optimizers() for kept in one.optimizer.state.values() for value in kept.values()
             if isinstance(value, torch.Tensor) and value.numel() > 1]  # fmt: skip
    mains = [] if settings.precision == "fp32" else [
        part for one in engine._optimizers() for group in one.shard_fp32_from_float16_groups for part in group
    ]  # fmt: skip
    held = {
        "weights": bytes_of(engine.model.parameters()),
        "gradients": bytes_of(one.grad_data for one in engine.ddp.buffers),
        "optimizer": bytes_of([*state, *mains]),
    }  # fmt: skip
    count = sum(one.numel() for one in engine.model.parameters())
    known = model.parameters + (settings.moving if settings.lora else 0)
    try:
        return row(f"{settings.model} {settings.precision}" + " lora" * bool(settings.lora), held, count, known,
                   lambda: engine.step(data, 1e-5), settings.estimate(place))  # fmt: skip
    finally:
        parallel_state.destroy_model_parallel()


def of_dit(settings: TrainDiffusion, place: Place, here: Here) -> dict[str, Any]:
    assert settings.compression is not None
    of, o = diffusion_model.objective(settings), settings.optimizer
    model = diffusion_model.build(settings, here)
    for weight in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(ema.local(weight.data), std=0.02)
    optimizer, means = diffusion_optimizer.make(model, o), [ema.begin(model) for _ in settings.ema]
    at_once = choose(settings.kernels, torch.empty(0, device=here.device)) == "fused"
    inputs = Inputs(settings, of, pa.table({"latents": [True]}), here.device)
    [latent], shape = settings.latents(settings.compression), settings.shapes[0]
    words = [np.zeros((512, settings.config.text_input), np.float16)]
    batch = Batch(step=1, shape=shape, frames=torch.randn(1, settings.config.latent_channels, *latent),
                  fps=torch.tensor([24.0]), inside=torch.ones(1, shape.height, shape.width, dtype=torch.bool),
                  samples=[0], rows=[0], starts=[0], keys=["a"], more=words, replaced=[])  # fmt: skip
    gradients = []

    def step() -> None:
        diffusion.gradients(settings, model, of, inputs, batch, None)
        gradients[:] = [bytes_of(one.grad for one in model.parameters() if one.grad is not None)]
        diffusion_optimizer.step(model, optimizer, o, means, [0.9] * len(means), at_once)
        optimizer.zero_grad()

    step()
    state = [one[name] for one in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = {"weights": bytes_of(model.parameters()), "gradients": gradients[0], "moments": bytes_of(state),
            "means": bytes_of(value for mean in means for value in mean.values())}  # fmt: skip
    count = sum(one.numel() for one in model.parameters())
    what = f"{settings.model} {settings.precision}"
    told = row(what, held, count, parameters(settings.config), step, settings.estimate(place))
    told["estimated"] |= states(settings, here.count)  # gradients and activations are never there together
    return told


def rows(chosen: argparse.Namespace, here: Here) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    gpu = named(torch.cuda.get_device_name()) if GPU else None
    place = Place(ranks=1, gpu=gpu, per_node=1, latents=True)
    if "ar" in chosen.only:
        for model in chosen.model.split(",") if GPU else ("ar-tiny", "ar-tiny-video2world"):
            for precision in chosen.precision.split(",") if GPU else ("fp32", "bf16"):
                for recompute in chosen.recompute.split(",") if GPU else ("none",):
                    s = TrainAr(model=model, steps=9, batch=1, precision=precision, recompute=recompute)  # type: ignore[arg-type]
                    yield f"{model} {precision} {recompute}", lambda s=s: of_ar(s, place, here)
        if not GPU:
            adapters = TrainAr(model="ar-tiny", steps=9, batch=1, lora=Lora(rank=4), start="/w")
            yield "lora", lambda: of_ar(adapters, place, here)
    if "dit" in chosen.only:
        size = (93, chosen.height, chosen.width) if GPU else (17, 64, 96)
        [frames, height, width] = size
        shape = Shape(frames=frames, height=height, width=width, batch=1)
        for model in chosen.dit.split(",") if GPU else ("tiny-predict2.5", "tiny-predict1"):
            for precision in chosen.precision.split(",") if GPU else ("fp32",):
                for recompute in ("none", "blocks") if GPU else ("none",):
                    one = TrainDiffusion(
                        model=model, shapes=(shape,), steps=200, precision=precision, recompute=recompute,  # type: ignore[arg-type]
                        pictures=Pictures(clips=0), tokenizer=None if GPU else "Wan-AI/Wan2.1-T2V-1.3B",
                    )  # fmt: skip
                    yield f"{model} {precision} {recompute}", lambda s=one: of_dit(s, place, here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="ar,dit")
    parser.add_argument("--model", default="ar-4b")
    parser.add_argument("--precision", default="bf16,fp8-current")
    parser.add_argument("--recompute", default="none,full")
    parser.add_argument("--dit", default="predict2.5-2b")
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    with cpu.stand_in():
        here = ranks.start()
        for what, measure in rows(chosen, here):
            try:
                told = measure()
            except (RuntimeError, ValueError, ImportError) as error:  # one row that fails leaves the others
                if not GPU:
                    raise
                print(f"{what}: FAILED: {type(error).__name__}: {str(error)[:600]}", flush=True)
                continue
            finally:
                gc.collect()
                if GPU:
                    torch.cuda.empty_cache()
            if chosen.json:
                print(json.dumps(told), flush=True)
            elif GPU:
                print(f"{what}: held {told['gib']:.1f} GiB, estimated {told['gib_estimated']:.1f} "
                      f"({told['gib_estimated'] / told['gib'] - 1:+.1%}); step {told['seconds']:.3f} s, estimated "
                      f"{told['seconds_estimated']:.3f} ({told['seconds_estimated'] / told['seconds'] - 1:+.1%})",
                      flush=True)  # fmt: skip
            else:
                print(f"{what}: " + ", ".join(f"{name} {size:,} of {told['estimated'][name]:,.0f} bytes"
                                              for name, size in told["held"].items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
