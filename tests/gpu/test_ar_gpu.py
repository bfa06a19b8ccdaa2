"""On a GPU: transformer-engine's layers, fused kernels and FP8 make the same model as torch's layers, and learn alike.

python -m pytest -q tests/gpu/test_ar_gpu.py
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("transformer_engine.pytorch")
pytest.importorskip("megatron.core")

from megatron.core import parallel_state

from hpc.models.ar import keys
from hpc.models.ar.presets import Preset, preset
from hpc.train.ar_engine import Compute, Engine, Microbatch
from hpc.train.settings.ar import Layout
from hpc.train.settings.optimizer import Optimizer
from hpc.train.token_data import sample

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"layers": 4, "dim": 512, "heads": 16, "head_dim": 64, "ffn": 1024, "classes": 1024, "bov": 1024, "pad": 1026}
BASE = msgspec.structs.replace(preset("ar-tiny"), vocab=1024, **SIZES)
WORLD = msgspec.structs.replace(preset("ar-tiny-video2world"), vocab=1088, **SIZES)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batches(shape_of: Preset) -> list[Microbatch]:
    generator = torch.Generator().manual_seed(3)
    world = shape_of.context_dim is not None
    before, after = ([shape_of.bov], [shape_of.pad] * (shape_of.length - shape_of.video_tokens)) if world else ([], [])
    made = []
    for _ in range(2):
        ids = torch.randint(0, 1024, (shape_of.video_tokens,), generator=generator).numpy()
        one = sample(ids, before, after, shape_of.shape, given=1)
        context = torch.randn(512, 1, 1024, generator=generator) if world else None
        made.append(Microbatch(one.tokens[None], one.labels[None], one.loss_mask[None], context))
    return made


def engine(shape_of: Preset, **compute: Any) -> Engine:
    weights = keys.Initial(shape_of, lambda name: torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return Engine(shape_of, Layout(), Compute(**compute), Optimizer(), weights)


def curve(shape_of: Preset, steps: int = 6, **compute: Any) -> list[float]:
    one = engine(shape_of, **compute)
    losses = [one.step(batches(shape_of), 3e-4).loss for _ in range(steps)]
    parallel_state.destroy_model_parallel()
    return losses


@pytest.mark.parametrize("shape_of", [BASE, WORLD], ids=["base", "world"])
def test_every_way_to_compute_learns_alike(shape_of: Preset) -> None:
    exact = curve(shape_of, precision="fp32", kernels="torch")
    assert exact[-1] < exact[0] - 0.2
    near = {"rtol": 0, "atol": 0.03}
    te: dict[str, Any] = {"backend": "transformer_engine"}
    ways = [{"precision": "bf16"}, te | {"kernels": "torch"}, te | {"kernels": "fused"},
            te | {"recompute": "selective"}, te | {"recompute": "full"}]  # fmt: skip
    for way in ways:
        torch.testing.assert_close(torch.tensor(curve(shape_of, **way)), torch.tensor(exact), **near, msg=str(way))
    for precision in ("fp8-delayed", "fp8-current", "fp8-blockwise"):
        for recompute in ("none", "full"):
            found = curve(shape_of, precision=precision, recompute=recompute, **te)
            torch.testing.assert_close(torch.tensor(found), torch.tensor(exact), rtol=0, atol=0.08,
                                       msg=f"{precision} {recompute} {found} {exact}")  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp8-delayed"])
@pytest.mark.parametrize("reshard", [False, True])
def test_it_goes_on_from_a_checkpoint(tmp_path: Path, precision: str, reshard: bool) -> None:
    one = engine(BASE, precision=precision, backend="transformer_engine")
    for _ in range(2):
        one.step(batches(BASE), 3e-4)
    writing = one.save(tmp_path, reshard)
    kept = [p.detach().clone() for p in one.model.parameters()]
    expected = [one.step(batches(BASE), 3e-4).loss for _ in range(2)]
    writing.finish()
    parallel_state.destroy_model_parallel()
    other = engine(BASE, precision=precision, backend="transformer_engine")
    other.load(tmp_path, reshard)
    assert all(torch.equal(a, b) for a, b in zip(kept, other.model.parameters(), strict=True))
    found = [other.step(batches(BASE), 3e-4).loss for _ in range(2)]
    parallel_state.destroy_model_parallel()
    assert found == pytest.approx(expected, abs=2e-3)
