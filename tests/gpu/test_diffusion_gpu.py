"""Training diffusion models on a GPU: bf16 and FP8, recomputed, compiled, spread by FSDP2, equal to the last bit after
a stop. Without one, the same in float32 on the CPU, where it is asked for. It needs no other test's files:

    python -m pytest -q tests/gpu/test_diffusion_gpu.py            on a CPU with HPC_TEST_ON_CPU=1
    torchrun --nproc-per-node 2 tests/gpu/test_diffusion_gpu.py    gradients of FSDP2 against those of one GPU
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from asked import skip_without_gpu
from torch import Tensor

from hpc.data import layers
from hpc.data.latents import SUFFIX, dumps
from hpc.data.work import Stopped
from hpc.models import dit_files
from hpc.models.diffusion import Condition, Draws
from hpc.models.dit import DiT
from hpc.train import diffusion, diffusion_model, ranks
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import CLOCKS, lines
from hpc.train.samples import listed
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW, Sizes, Text

GPU = torch.cuda.is_available()
skip_without_gpu(__name__)

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
LATENT = (16, 4, 8, 8)
FP8 = ("fp8-current", "fp8-blockwise", "fp8-delayed")


def settings(**more: Any) -> TrainDiffusion:
    return TrainDiffusion(**{
        "model": "tiny-predict2", "sizes": Sizes(channels=256, heads=2, adaln_rank=16, text_channels=64),
        "shapes": (Shape(frames=13, height=64, width=64, batch=4),), "steps": 8, "readers": 0,
        "text": Text(source="none"), "validation": Validation(share=0.2, by="clip", every=4, clips=2),
        "checkpoints": Checkpoints(every=100), "optimizer": AdamW(rate=1e-3, warmup=2), **more,
    })  # fmt: skip


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    yield ranks.start()
    dist.destroy_process_group()


def awake(place: Path, **more: Any) -> TrainDiffusion:
    """Settings that begin with weights whose blocks are not the identity, as they are at first."""
    given = settings(**more)
    model = diffusion_model.first(given)
    torch.manual_seed(0)
    for block in model.blocks:
        for name in ("self_attn", "cross_attn", "mlp"):
            torch.nn.init.normal_(getattr(block, f"adaln_modulation_{name}")[2].weight, std=0.3)
    torch.nn.init.normal_(model.final_layer.adaln_modulation[2].weight, std=0.3)
    dit_files.save(model.state_dict(), given.config, place / "awake")
    return settings(weights=str(place / "awake"), **more)


def sample(rank: int, config: Any, device: torch.device) -> tuple[Tensor, Condition, Draws]:
    """A rank's two samples."""
    random = torch.Generator().manual_seed(100 + rank)
    x0, noise, text = (torch.randn(shape, generator=random).to(device)
                       for shape in ((2, *LATENT), (2, *LATENT), (2, 16, config.text_input)))  # fmt: skip
    given = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]], device=device)
    level = torch.tensor([0.3, -0.5], device=device)
    return x0, Condition(text, given), Draws(noise, level, torch.ones(2, 2, device=device), level, None)


def run(given: TrainDiffusion, model: DiT, rank: int, device: torch.device) -> float:
    """Forward and backward."""
    with diffusion_model.computing(given, device):
        loss = diffusion_model.objective(given).loss(model, *sample(rank, given.config, device)).loss
    loss.backward()
    return loss.item()


def spread(given: TrainDiffusion, here: ranks.Here) -> DiT:
    model = diffusion_model.build(given, here)
    diffusion_model.begin(model, given, here)
    return model


def whole(model: DiT) -> dict[str, Tensor]:
    return {name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).float()
            for name, p in model.named_parameters() if p.grad is not None}  # fmt: skip


def off(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative to the size of the others, root mean square."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([grads[name].flatten() for name in sorted(one)]) for grads in (one, other))
    return ((a - b).norm() / b.norm()).item()


def on_one(given: TrainDiffusion, rank: int, device: torch.device) -> dict[str, Tensor]:
    """Gradients of a rank's samples on one GPU, without FSDP: the same layers, with the weights that it gathers."""
    model = diffusion_model.network(given, device).to_empty(device=device)
    model.load_state_dict(diffusion_model.first(given).state_dict())
    if device.type == "cuda" and given.precision != "fp32":
        model = model.to(torch.bfloat16)
    run(given, model, rank, device)
    return whole(model)


def are_those_of_one(given: TrainDiffusion, here: ranks.Here) -> float:
    """How far gradients of all ranks together are from the mean of what one GPU finds for each rank's samples."""
    model = spread(given, here)
    run(given, model, here.rank, here.device)
    each = [on_one(given, rank, here.device) for rank in range(here.count)]
    mean = {name: sum(one[name] for one in each) / here.count for name in each[0]}
    return off(whole(model), mean)


@pytest.mark.parametrize("precision", ["fp32", "bf16", *FP8])
def test_gradients_of_fsdp_are_those_of_one_gpu(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    if precision in FP8 and GPU:
        pytest.importorskip("transformer_engine.pytorch")
    assert are_those_of_one(awake(tmp_path, precision=precision), here) < 1e-3


@pytest.mark.parametrize("precision", FP8)
def test_recompute_runs_in_fp8(
    here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Each layer twice, both times in FP8, with the same gradients; delayed scaling's histories move on once a step."""
    depth = 0
    if GPU:
        pytest.importorskip("transformer_engine.pytorch")
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        enabled = FP8GlobalStateManager.is_fp8_enabled
    else:  # the same code, of which it is seen whether it is inside `computing`

        @contextlib.contextmanager
        def counted(*_: Any) -> Iterator[None]:
            nonlocal depth
            depth += 1
            yield
            depth -= 1

        monkeypatch.setattr(diffusion_model, "computing", counted)
        enabled = lambda: depth > 0
    grads, histories = {}, {}
    for recompute in ("none", "blocks", "attention"):
        given = awake(tmp_path, precision=precision, recompute=recompute)
        model = spread(given, here)
        seen: list[Tensor] = []
        for block in model.blocks:
            block.mlp.layer1.register_forward_pre_hook(lambda *_, seen=seen: seen.append(bool(enabled())))
        run(given, model, 0, here.device)
        assert seen == [True] * (2 if recompute == "none" else 4), recompute
        grads[recompute] = whole(model)
        if GPU and precision == "fp8-delayed":
            layers = [layer for block in model.blocks for layer in (block.cross_attn.k_proj, block.mlp.layer1)]
            histories[recompute] = torch.stack([one.fp8_meta["scaling_fwd"].amax_history for one in layers])
            assert histories[recompute].any()
    for recompute, found in grads.items():
        assert off(found, grads["none"]) < 1e-3, recompute
    for found in histories.values():
        torch.testing.assert_close(found, histories["none"])


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("precision", FP8)
def test_fp8_is_near_bf16_and_not_the_same(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("transformer_engine.pytorch")
    grads = []
    for one in (precision, "bf16", "fp32"):
        model = spread(given := awake(tmp_path, precision=one), here)
        run(given, model, 0, here.device)
        grads.append(whole(model))
    assert off(grads[1], grads[2]) < 0.05
    assert 0.01 < off(grads[0], grads[1]) < 0.3


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("precision", FP8)
def test_kernels_hand_fp8_to_the_layers(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    """...but blockwise, with about the gradients of layers that cast themselves."""
    pytest.importorskip("transformer_engine.pytorch")
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor

    grads = {}
    for kernels in ("fused", "torch"):
        given = awake(tmp_path, precision=precision, kernels=kernels)
        model = spread(given, here)
        seen: list[Tensor] = []
        for block in model.blocks:
            for layer in (block.self_attn.q_proj, block.self_attn.v_proj, block.cross_attn.q_proj, block.mlp.layer1,
                          block.mlp.layer2):  # fmt: skip
                layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        run(given, model, 0, here.device)
        ours = kernels == "fused" and precision != "fp8-blockwise"
        assert [isinstance(x, Float8Tensor) for x in seen] == [ours] * 5 * len(model.blocks)
        assert not ours or all(x._data is None and x._transpose is not None for x in seen), "rows are kept"
        grads[kernels] = whole(model)
    assert off(grads["fused"], grads["torch"]) < 0.1


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_have_the_gradients_of_torchs_operators(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    grads = []
    for kernels, spared in (("torch", {}), ("fused", {}), ("fused", {"matmuls": 1})):
        given = awake(tmp_path, precision=precision, kernels=kernels, recompute="attention", spared=spared)
        run(given, model := spread(given, here), 0, here.device)
        grads.append(whole(model))
    assert off(grads[1], grads[0]) < {"fp32": 1e-4, "bf16": 0.02}[precision]
    assert off(grads[2], grads[1]) < 1e-3


def tar(place: Path) -> Path:
    rows, columns = np.mgrid[:8, :8]
    with layers.TarWriter(place / "000000.tar") as out:
        for number in range(10):
            waves = [[np.sin(rows + channel + number + t) + np.cos(columns - t) for t in range(4)]
                     for channel in range(16)]  # fmt: skip
            said = {"num_frames": 13, "fps": 24.0, "height": 64, "width": 64, "inside": [0, 0, 64, 64]}
            members = {SUFFIX: dumps(np.array(waves, np.float32)), ".json": json.dumps(said).encode()}
            out.add(f"c{number:02}", members)
    return place / "000000.tar"


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS}
            for line in lines(folder / "metrics.jsonl")]  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp8-current"])
def test_a_stopped_run_is_equal_to_the_last_bit(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    if precision in FP8 and GPU:
        pytest.importorskip("transformer_engine.pytorch")
    torch.use_deterministic_algorithms(True, warn_only=True)
    table, told = listed([str(tar(tmp_path))]), [1, 1, 1, 1, 0]

    def check() -> None:
        if not told.pop(0):
            raise Stopped

    given = settings(precision=precision, recompute="attention")
    diffusion.train(given, table, tmp_path / "whole", here, lambda: None)
    with pytest.raises(Stopped):
        diffusion.train(given, table, tmp_path / "parts", here, check)
    diffusion.train(given, table, tmp_path / "parts", here, lambda: None)
    torch.use_deterministic_algorithms(False)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    said = curve(tmp_path / "whole")
    assert said[-1]["held_out"] < said[3]["held_out"]


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_an_update_in_one_pass_learns_the_same(here: ranks.Here, tmp_path: Path) -> None:
    table = listed([str(tar(tmp_path))])
    for kernels in ("torch", "fused"):
        given = settings(kernels=kernels, precision="fp32")
        diffusion.train(given, table, tmp_path / kernels, here, lambda: None)
    one, other = (curve(tmp_path / kernels)[-1] for kernels in ("torch", "fused"))
    for name in ("loss", "held_out", "ema_held_out"):
        assert other[name] == pytest.approx(one[name], rel=1e-3)


@pytest.mark.skipif(not GPU, reason="no GPU: compiling takes minutes on a CPU")
@pytest.mark.parametrize("precision", ["bf16", "fp8-current"])
def test_compiled_blocks_learn_the_same(here: ranks.Here, tmp_path: Path, precision: str) -> None:
    if precision in FP8:
        pytest.importorskip("transformer_engine.pytorch")
    grads = []
    for compiled in (False, True):
        given = awake(tmp_path, precision=precision, compile=compiled, recompute="attention")
        run(given, model := spread(given, here), 0, here.device)
        grads.append(whole(model))
    assert off(grads[1], grads[0]) < 0.05


def main() -> None:
    here = ranks.start()
    with tempfile.TemporaryDirectory() as place:
        for precision in ("fp32", "bf16", *FP8):
            given = awake(Path(place, str(here.rank)), precision=precision)
            found = are_those_of_one(given, here)
            if here.rank == 0:
                print(f"{precision:14} {here.count} ranks: gradients are off by {found:.2e}", flush=True)
            assert found < 1e-3, precision
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
