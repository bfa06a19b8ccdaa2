"""On two GPUs an autoregressive model learns what it learns on one: every parallel axis over NCCL with
transformer-engine's layers, in bfloat16 and FP8. And what is restored from a checkpoint is what was saved, to the last
byte: weights, optimizer, the histories of FP8; with `deterministic: true` so is what follows.

    python -m pytest -q -s tests/gpu/test_ar_ranks_gpu.py

With one GPU the axes are left out. On a CPU, with HPC_TEST_ON_CPU=1, both are tried over gloo in float32.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("megatron.core")

from megatron.core import parallel_state
from test_ar_gpu import BASE, GPU, WORLD, batches, forget_scales

from hpc.models.ar import cpu, keys
from hpc.models.ar.presets import Preset
from hpc.train import ranks
from hpc.train.ar_engine import Compute, Engine
from hpc.train.settings.ar import Layout, Lora
from hpc.train.settings.optimizer import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore")
RANKS = 2
LAYOUTS = {"tp2": {"tensor": 2, "sequence": False}, "tp2+sp": {"tensor": 2}, "pp2": {"pipeline": 2},
           "cp2": {"context": 2}, "dp2": {}}  # fmt: skip
PRECISIONS = {"bf16": 0.02, "fp8-delayed": 0.08, "fp8-current": 0.05} if GPU else {"fp32": 1e-4}
"""By how much the losses of two ranks may differ from those of one. Rounded otherwise by bfloat16, the base's differ by
0.0003 at most (measured on a CPU, every layout); a layer that misses its gradients is off by 0.06 at the second step
and 0.2 at the fourth, half of the batch left out by 0.13 and 0.39. FP8 scales each rank's part by itself."""
CASES: dict[str, tuple[str, Preset, str, Lora | None]] = {
    f"{layout} {precision}": (layout, BASE, precision, None) for precision in PRECISIONS for layout in LAYOUTS
}
"""Name -> layout, model, precision, adapters."""
FIRST = next(iter(PRECISIONS))
CASES |= {f"world {layout} {FIRST}": (layout, WORLD, FIRST, None) for layout in ("tp2+sp", "pp2", "cp2")}
CASES |= {f"lora {layout} {FIRST}": (layout, BASE, FIRST, Lora(rank=8, alpha=32.0)) for layout in ("tp2+sp", "dp2")}


def engine(layout: dict[str, Any], shape_of: Preset, precision: str, lora: Lora | None = None, **more: Any) -> Engine:
    made = lambda name: torch.Generator().manual_seed(sum(map(ord, name)))
    weights = keys.Initial(shape_of, made, lora.rank if lora else 0)
    compute = Compute(precision=precision, backend="transformer_engine" if GPU else "local", **more)  # type: ignore
    return Engine(shape_of, Layout(**layout), compute, Optimizer(), weights, lora)


def curve(layout: dict[str, Any], shape_of: Preset, precision: str, lora: Lora | None) -> list[float]:
    one = engine(layout, shape_of, precision, lora)
    mine = batches(shape_of)[one.data_rank :: one.data_ranks]
    losses = [one.step(mine, 2e-3 if lora else 3e-4).loss for _ in range(4)]
    parallel_state.destroy_model_parallel()
    forget_scales()
    return losses


def axes(path: Path) -> None:
    """All cases, on this rank of one or two."""
    alone = dist.get_world_size() == 1
    found: dict[str, list[float]] = {}
    for name, (layout, shape_of, precision, lora) in CASES.items():
        began = time.monotonic()
        # without axes, layouts are one and the same
        same = next((other for other, case in CASES.items() if alone and case[1:] == CASES[name][1:]), name)
        found[name] = found.get(same) or curve({} if alone else LAYOUTS[layout], shape_of, precision, lora)
        if dist.get_rank() == 0:
            print(f"{name}, {dist.get_world_size()} ranks: {time.monotonic() - began:.1f} s", flush=True)
    path.write_text(json.dumps(found))


def state(one: Engine) -> dict[str, torch.Tensor]:
    """Copies of all that a checkpoint must bring back."""
    found = {f"weight {name}": p for name, p in one.model.named_parameters()}
    for number, optimizer in enumerate(one._optimizers()):
        for group in optimizer.optimizer.param_groups:
            for place, main in enumerate(group["params"]):
                found[f"main {number} {group['wd_mult']} {place}"] = main
                kept = optimizer.optimizer.state[main]
                found |= {f"{what} {number} {group['wd_mult']} {place}": kept[what]
                          for what in ("exp_avg", "exp_avg_sq")}  # fmt: skip
    for name, module in one.model.named_modules():
        if name.endswith("core_attention"):
            continue  # in bfloat16: transformer-engine has scales for it, reads none and restores none
        for way in ("scaling_fwd", "scaling_bwd"):
            if (meta := getattr(module, "fp8_meta", {}).get(way)) is not None and hasattr(meta, "amax_history"):
                found |= {f"{way} {name}": meta.scale, f"{way} history {name}": meta.amax_history}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}


def goes_on(path: Path) -> None:
    """For each precision and form of checkpoint: what differs, and both curves behind it."""
    said = {}
    for precision in ("bf16", "fp8-delayed") if GPU else ("fp32", "bf16"):
        for reshard in (False, True):
            folder = path.parent / f"{precision} {reshard}"
            folder.mkdir()
            one = engine({}, BASE, precision, deterministic=True)
            for _ in range(2):
                one.step(batches(BASE), 3e-4)
            writing, before = one.save(folder, reshard), state(one)
            curve = [one.step(batches(BASE), 3e-4).loss for _ in range(3)]
            writing.finish()
            parallel_state.destroy_model_parallel()
            forget_scales()
            other = engine({}, BASE, precision, deterministic=True)
            other.load(folder, reshard)
            after = state(other)
            scales = sum(name.startswith("scaling") for name in before)
            differ = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
            again = [other.step(batches(BASE), 3e-4).loss for _ in range(3)]
            said[f"{precision} {reshard}"] = {"differ": differ, "scales": scales, "curves": [curve, again]}
            parallel_state.destroy_model_parallel()
            forget_scales()
    path.write_text(json.dumps(said))


def _rank(rank: int, count: int, port: int, path: Path, deterministic: bool, work: Callable[[Path], None]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    if deterministic:
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # before transformer-engine is imported
    torch.set_num_threads(1)
    with cpu.stand_in(), torch.compiler.set_stance("force_eager"):
        ranks.start(deterministic)
        work(path.with_name(f"{path.name}{rank}"))
        dist.barrier()
        dist.destroy_process_group()


def started(count: int, path: Path, work: Callable[[Path], None], deterministic: bool = False) -> Callable[[], Any]:
    """Begins ranks; the function that it returns waits for them and gives what rank 0 found. All found the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    group = [spawn.Process(target=_rank, args=(n, count, port, path, deterministic, work)) for n in range(count)]
    for one in group:
        one.start()

    def result() -> Any:
        for one in group:
            one.join(500)
            one.kill()
        found = [json.loads(path.with_name(f"{path.name}{rank}").read_text()) for rank in range(count)]
        assert all(one == found[0] for one in found), "all ranks tell the same"
        return found[0]

    return result


@pytest.mark.skipif(GPU and torch.cuda.device_count() < RANKS, reason=f"needs {RANKS} GPUs")
def test_two_ranks_learn_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    both = started(1, tmp_path / "1/rank", axes), started(RANKS, tmp_path / "rank", axes)
    alone, together = (result() for result in both)
    assert alone.keys() == together.keys() == CASES.keys()
    wrong = []
    for name, (_, _, precision, _) in CASES.items():
        far = max(abs(a - b) for a, b in zip(alone[name], together[name], strict=True))
        print(f"{name}: {alone[name][0]:.4f} to {alone[name][-1]:.4f}, apart by {far:.2g} at most")
        assert alone[name][-1] < alone[name][0] - 0.02, "it learns"
        if far > PRECISIONS[precision]:
            wrong.append(f"{name}: {together[name]} for {alone[name]}")
    assert not wrong, "\n".join(wrong)


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    for name, said in started(1, tmp_path / "rank", goes_on, deterministic=True)().items():
        assert not said["differ"], (name, said["differ"][:5], len(said["differ"]))
        assert (said["scales"] > 0) == name.startswith("fp8"), name
        assert said["curves"][0] == said["curves"][1], name
