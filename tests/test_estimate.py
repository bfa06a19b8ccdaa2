"""What trainings are estimated to need, beside what was measured on a GPU, and what tiny ones hold on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc.data.gpu_types import GIB, TYPES, named
from hpc.models.ar.presets import PRESETS
from hpc.train.estimate import Place, less, refuse
from hpc.train.estimate_diffusion import adapted, encoded_at_once, states
from hpc.train.settings import TrainAr, TrainDiffusion
from hpc.train.settings.ar import Layout
from hpc.train.settings.data import Shape
from hpc.train.settings.diffusion import Lora, Mesh

H100, H200 = named("h100"), named("NVIDIA H200")
SHAPE = Shape(frames=93, height=432, width=768, batch=8)


def ar(**more: Any) -> TrainAr:
    return TrainAr(**{"model": "ar-4b", "steps": 1000, "batch": 8} | more)


def dit(**more: Any) -> TrainDiffusion:
    return TrainDiffusion(**{"model": "predict2.5-2b", "shapes": (SHAPE,), "steps": 1000} | more)


def test_gpus_are_found_by_what_slurm_and_drivers_call_them() -> None:
    known = {"h100": "H100", "NVIDIA H100 80GB HBM3": "H100", "gpu:h200:8": "H200", "NVIDIA GH200 480GB": "GH200",
             "nvidia_h100_pcie": "H100 PCIe", "NVIDIA A100-SXM4-80GB": "A100 80", "a100-80": "A100 80", "a100": "A100",
             "NVIDIA B200": "B200", "l40s": "L40S"}  # fmt: skip
    assert {text: gpu.name for text in known if (gpu := named(text))} == known
    assert all(named(one.name) == one for one in TYPES)
    assert named("v100") is None and named("") is None


@pytest.mark.parametrize(("batch", "precision", "measured", "step"), [
    (1, "bf16", 99.06, 0.647), (8, "bf16", 99.06, 4.935), (1, "fp8-delayed", 102.1, 0.480),
    (8, "fp8-delayed", 102.1, 3.654), (8, "fp8-current", 101.3, 3.736),
])  # fmt: skip
def test_what_an_h200_held_and_took(batch: int, precision: str, measured: float, step: float) -> None:
    """AR-4B, 12,800 tokens a microbatch on one GPU: python tests/bench_ar.py --microbatches 8 (1)."""
    found = ar(batch=batch, precision=precision).estimate(Place(ranks=1, gpu=H200))
    assert found.total / GIB == pytest.approx(measured, rel=0.015)
    assert found.step == pytest.approx(step, rel=0.04)
    assert found.mfu == pytest.approx(batch * PRESETS["ar-4b"].flops() / step / 989e12, rel=0.04)


PLAIN = {"kernels": "torch"}


@pytest.mark.parametrize(("size", "measured", "step", "more"), [
    ((432, 768), 123.7, 1.945, {}), ((432, 768), 118.8, 1.810, {"precision": "fp8-current"}),
    ((432, 768), 118.8, 1.813, {"precision": "fp8-delayed"}), ((432, 768), 123.9, 1.995, PLAIN | {"compile": True}),
    ((432, 768), 122.7, 1.870, {"precision": "fp8-blockwise"}),
    ((432, 768), 111.3, 2.434, PLAIN | {"recompute": "matmuls", "spared": {"none": 9}}),
    ((704, 1280), 121.2, 11.64, {"recompute": "attention", "spared": {"matmuls": 14}}),
    ((704, 1280), 126.4, 11.22, {"precision": "fp8-current", "recompute": "attention", "spared": {"none": 8}}),
])  # fmt: skip
def test_what_a_diffusion_step_held_and_took(
    size: tuple[int, int], measured: float, step: float, more: dict[str, Any]
) -> None:
    """Predict2.5-2B on one H200: python tests/bench_dit.py."""
    settings = dit(shapes=(Shape(frames=93, height=size[0], width=size[1], batch=1),), **more)
    found = settings.estimate(Place(ranks=1, gpu=H200, latents=True))
    assert found.total / GIB == pytest.approx(measured, rel=0.02)
    assert found.step == pytest.approx(step, rel=0.06)
    assert "gradients" not in found.memory, "they come when activations go"


CLIP_EACH = {"shapes": (Shape(frames=93, height=432, width=768, batch=2),)}
SEVEN = {"model": "predict1-7b-text2world", "shapes": (Shape(frames=121, height=704, width=1280, batch=2),),
         "recompute": "attention", "spared": {"matmuls": 4}}  # fmt: skip
FP8 = "fp8-delayed"


@pytest.mark.parametrize(("settings", "measured", "step"), [
    (ar(batch=4, layout=Layout(tensor=2)), 49.79, 1.399), (ar(batch=8), 76.61, 2.574), (ar(batch=2), 76.62, 0.698),
    (ar(batch=8, precision=FP8), 79.62, 1.902), (ar(batch=2, precision=FP8), 79.63, 0.522),
    (dit(**CLIP_EACH), 104.9, 2.056), (dit(**CLIP_EACH, precision="fp8-current"), 99.9, 1.938),
    (dit(**SEVEN), 124.8, 14.65),
])  # fmt: skip
def test_what_two_h200s_held_and_took(settings: Any, measured: float, step: float) -> None:
    """AR-4B, 1 or 4 microbatches a rank; Predict2.5-2B and Predict1-7B in FSDP2: tests/bench_ar.py, bench_dit.py."""
    found = settings.estimate(Place(ranks=2, gpu=H200, latents=True))
    assert found.total / GIB == pytest.approx(measured, rel=0.01)
    assert found.step == pytest.approx(step, rel=0.055)


def test_each_way_to_split_a_model_takes_its_share() -> None:
    def of(ranks: int, **layout: Any) -> dict[str, float]:
        more = {name: layout.pop(name) for name in ("recompute", "batch") if name in layout}
        return ar(layout=Layout(**layout), **more).estimate(Place(ranks=ranks)).memory

    one = of(1)
    assert one["weights"] == 2 * PRESETS["ar-4b"].parameters and one["optimizer"] == 6 * one["weights"]
    two = of(2, tensor=2)
    assert all(two[name] == pytest.approx(one[name] / 2) for name in one)
    uneven = of(2, tensor=2, sequence=False)
    assert one["activations"] / 2 < uneven["activations"] < one["activations"]
    assert of(2)["weights"] == one["weights"] and of(2)["optimizer"] == one["optimizer"] / 2
    context = of(2, context=2)
    assert context["activations"] == one["activations"] / 2 and context["optimizer"] == one["optimizer"] / 2
    # the first stage holds as many microbatches as there are stages: no fewer activations, and no logits
    piped = of(4, pipeline=4)
    assert piped["activations"] == pytest.approx(one["activations"]) and "logits" not in piped
    last = of(4, pipeline=4, batch=1)
    assert last["activations"] == pytest.approx(one["activations"] / 4) and last["logits"] == one["logits"]
    assert of(1, recompute="full")["activations"] < one["activations"] / 8


def test_a_step_takes_longer_for_what_is_computed_again_and_sent() -> None:
    def step(settings: Any, ranks: int, **more: Any) -> dict[str, float]:
        return settings.estimate(Place(ranks=ranks, gpu=H100, **more)).times

    plain, full = step(ar(), 1), step(ar(recompute="full"), 1)
    assert full["computing"] == pytest.approx(4 / 3 * plain["computing"], rel=0.05)
    assert step(ar(), 8)["computing"] == pytest.approx(plain["computing"] / 8)
    piped = step(ar(layout=Layout(pipeline=4)), 4)
    assert piped["waiting of pipeline stages"] == pytest.approx(piped["computing"] * 3 / 8)
    near, far = (step(ar(layout=Layout(tensor=8)), 8, per_node=n)["tensor-parallel messages"] for n in (8, 4))
    assert far > 2 * near > 0
    assert sum(step(ar(precision="fp8-current"), 1).values()) < sum(plain.values())
    assert not ar().estimate(Place(ranks=1)).times, "nobody knows which GPU"
    video, again = step(dit(), 8), step(dit(recompute="blocks"), 8)
    assert again["computing"] == pytest.approx(4 / 3 * video["computing"], rel=0.05)
    slow = step(dit(), 8, per_node=1, fabric=1e9)
    assert slow["FSDP's messages"] > video["computing"] and "FSDP's messages" not in video


def test_a_diffusion_model_is_spread_over_ranks() -> None:
    one, eight = (dit().estimate(Place(ranks=ranks, latents=True)) for ranks in (1, 8))
    assert states(dit(), 8) == {name: size / 8 for name, size in states(dit(), 1).items()}
    assert eight.memory["weights"] == one.memory["weights"] / 8 and "gradients" not in one.memory
    parts = dit(micro_batch=1).estimate(Place(ranks=1, latents=True))
    assert parts.memory["gradients"] == states(dit(), 1)["gradients"], "of the parts before"
    tiny = dit(shapes=(Shape(frames=1, height=32, width=32, batch=1),)).estimate(Place(ranks=1, latents=True))
    assert "activations" not in tiny.memory and tiny.memory["gradients"] == parts.memory["gradients"]
    assert eight.memory["activations"] == one.memory["activations"] / 8, "of 8 videos each has one"
    hsdp = dit(mesh=Mesh(dp_replicate=2)).estimate(Place(ranks=8, latents=True))
    assert hsdp.memory["weights"] == 2 * eight.memory["weights"]
    shared = dit(mesh=Mesh(cp=2), micro_batch=1).estimate(Place(ranks=8, latents=True))
    assert shared.memory["activations"] == eight.memory["activations"] / 2
    small = dit(lora=Lora(), weights="published").estimate(Place(ranks=8, latents=True))
    assert small.memory["weights"] == eight.memory["weights"] and small.memory["moments"] < one.memory["moments"] / 200
    videos = dit(recompute="blocks").estimate(Place(ranks=8))
    assert videos.memory["encoding of videos"] / GIB == pytest.approx(19.5, abs=0.5), "in pieces of 48 frames"
    large, small_one = (Shape(frames=n, height=704, width=1280, batch=64) for n in (93, 1))
    assert encoded_at_once(large, 8, 4) == encoded_at_once(large, 1, 4) == (16 + 5) * 704 * 1280
    assert encoded_at_once(small_one, 64, 4) == 18 * 704 * 1280, "pictures go together"


def test_what_to_change_is_told_with_figures() -> None:
    place = Place(ranks=8, gpu=H100)
    with pytest.raises(ValueError, match=r"about 160 GiB a GPU are needed, of 79: weights 21.5, gradients 43") as told:
        refuse(ar(model="ar-12b"), place, H100.memory)
    assert "It would be 52 GiB and 2." in str(told.value) and "with `layout.tensor: 4`" in str(told.value)
    for words in str(told.value).split("It would be ")[1].split("; "):
        size = float(words.split(" GiB")[0])
        assert size < 79
    refuse(ar(model="ar-12b", layout=Layout(tensor=4)), place, H100.memory)
    latents = less(dit(recompute="blocks"), Place(ranks=8), 30 * GIB)
    assert latents == "It would be 12 GiB with prepare.latents before it"
    assert less(ar(batch=1), Place(ranks=1), 50 * GIB).startswith("No two changes are enough, it would be 7")


def test_settings_are_checked_without_torch() -> None:
    code = ("import sys; from hpc.train.settings import TrainAr; from hpc.train.estimate import Place; "
            "TrainAr(model='ar-4b', steps=1, batch=8).estimate(Place(ranks=8)); "
            "print([name for name in ('torch', 'numpy', 'megatron') if name in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tiny_models_hold_what_is_estimated() -> None:
    """Weights, gradients, optimizer and means, to the byte, of real steps on this machine."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "memory.py"), "--json"], env=env, check=True,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["what"] for row in rows} >= {"ar-tiny fp32", "ar-tiny bf16",
                                             "ar-tiny bf16 lora", "ar-tiny-video2world fp32",
                                             "tiny-predict2.5 fp32", "tiny-predict1 fp32"}  # fmt: skip
    for row in rows:
        assert row["parameters"] == row["parameters_estimated"], row
        for name, size in row["held"].items():
            assert size == pytest.approx(row["estimated"][name], rel=1e-3), (row["what"], name)


def test_adapters_are_counted_as_they_are_made() -> None:
    torch = pytest.importorskip("torch")
    from hpc.models import lora
    from hpc.models.dit import DiT

    settings = dit(model="tiny-predict2.5", lora=Lora(rank=4), weights="/w", tokenizer="Wan-AI/Wan2.1-T2V-1.3B",
                   shapes=(Shape(frames=17, height=64, width=96, batch=1),))  # fmt: skip
    with torch.device("meta"):
        model = DiT(settings.config)
        lora.adapt(model, 4, 4.0)
    assert adapted(settings) == sum(p.numel() for p in model.parameters() if p.requires_grad)
