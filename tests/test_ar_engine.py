"""One initial model gives the same losses however it lies over ranks, and goes on from what another layout saved."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from forks import FORKS

from hpc.models.ar import cpu, keys
from hpc.models.ar.presets import Preset, preset
from hpc.train.settings.ar import Layout, Lora
from hpc.train.settings.optimizer import Optimizer
from hpc.train.token_data import sample

SMALL = {"classes": 512, "bov": 512, "pad": 514, "layers": 2, "shape": (2, 8, 8)}
BASE = msgspec.structs.replace(preset("ar-tiny"), vocab=512, **SMALL)
WORLD = msgspec.structs.replace(preset("ar-tiny-video2world"), vocab=576, **SMALL)
ACTION = msgspec.structs.replace(preset("ar-tiny-action"), vocab=576, **(SMALL | {"shape": (2, 8, 12)}))
LORA = {"lora": Lora(rank=4, alpha=24.0)}
RATES = (1e-3, 5e-4, 1e-3, 1e-3)
FOUR: dict[str, dict[str, Any]] = {
    "tp2+sp pp2": {"layout": {"tensor": 2, "pipeline": 2}},
    "tp2+sp cp2": {"layout": {"tensor": 2, "context": 2}},
    "tp2+sp dp2": {"layout": {"tensor": 2}, "save": False},
    "pp2 cp2": {"layout": {"pipeline": 2, "context": 2}, "micro": 2},
    "pp2 dp2": {"layout": {"pipeline": 2}, "save": True},
    "cp2 dp2": {"layout": {"context": 2}, "save": False, "micro": 2},
    "world tp2+sp pp2": {"layout": {"tensor": 2, "pipeline": 2}, "preset": WORLD, "compute": {"recompute": "full"}},
    "world tp2+sp cp2": {"layout": {"tensor": 2, "context": 2}, "preset": WORLD},
    "lora tp2+sp dp2": {"layout": {"tensor": 2}} | LORA,
}
"""Of four ranks: two axes at once. save: as below. micro: sequences at a time."""
TOGETHER: dict[str, dict[str, Any]] = {
    "tp2": {"layout": {"tensor": 2, "sequence": False}, "save": True},
    "tp2+sp": {"layout": {"tensor": 2}},
    "pp2": {"layout": {"pipeline": 2}, "save": True},
    "cp2": {"layout": {"context": 2}, "save": True},
    "dp2": {"layout": {}, "save": False},
    "world tp2+sp": {"layout": {"tensor": 2}, "preset": WORLD},
    "world pp2": {"layout": {"pipeline": 2}, "preset": WORLD},
    "world cp2": {"layout": {"context": 2}, "preset": WORLD},
    "action tp2+sp": {"layout": {"tensor": 2}, "preset": ACTION, "save": True},
    "action cp2": {"layout": {"context": 2}, "preset": ACTION},
    "lora tp2": {"layout": {"tensor": 2, "sequence": False}, "save": True} | LORA,
    "lora tp2+sp": {"layout": {"tensor": 2}} | LORA,
    "lora pp2": {"layout": {"pipeline": 2}} | LORA,
    "lora cp2": {"layout": {"context": 2}, "save": True} | LORA,
    "lora dp2": {"layout": {}, "save": False} | LORA,
    "action lora tp2+sp": {"layout": {"tensor": 2}, "preset": ACTION} | LORA,
    "tp2+sp from tp2+sp dp2": {"layout": {"tensor": 2}, "load": "tp2+sp dp2"},
    "dp2 from pp2 dp2": {"layout": {}, "load": "pp2 dp2"},
    "tp2+sp from cp2": {"layout": {"tensor": 2}, "load": "cp2"},
    "tp2+sp from pp2": {"layout": {"tensor": 2}, "load": "pp2"},
    "pp2 from tp2": {"layout": {"pipeline": 2}, "load": "tp2"},
}
"""Of two ranks. save: after two of four steps; True: for any layout."""
ALONE: dict[str, dict[str, Any]] = {
    "one": {},
    "micro": {"micro": 2},
    "decay": {},
    "selective": {"compute": {"recompute": "selective"}},
    "full": {"compute": {"recompute": "full"}},
    "bf16": {"compute": {"precision": "bf16"}},
    "deterministic": {"compute": {"deterministic": True}},
    "world": {"preset": WORLD},
    "world full": {"preset": WORLD, "compute": {"recompute": "full"}},
    "action": {"preset": ACTION},
    "action from tp2+sp": {"preset": ACTION, "load": "action tp2+sp"},
    "lora": LORA,
    "lora full": {"compute": {"recompute": "full"}} | LORA,
    "lora from tp2": {"load": "lora tp2"} | LORA,
    "lora from cp2": {"load": "lora cp2"} | LORA,
    "lora from dp2": {"load": "lora dp2"} | LORA,
    "action lora": {"preset": ACTION} | LORA,
    "from tp2": {"load": "tp2"},
    "from dp2": {"load": "dp2"},
    "from cp2": {"load": "cp2"},
    "from pp2 dp2": {"load": "pp2 dp2"},
}
SAVED = FOUR | TOGETHER


def microbatches(shape_of: Preset, engine: Any, size: int) -> list[Any]:
    from hpc.train.ar_engine import Microbatch

    generator = torch.Generator().manual_seed(3)
    world = shape_of.context_dim is not None
    before, after = ([shape_of.bov], [shape_of.pad] * (shape_of.length - shape_of.video_tokens)) if world else ([], [])
    made = []
    for _ in range(4):
        ids = torch.randint(0, 512, (shape_of.video_tokens,), generator=generator).numpy()
        one = sample(ids, before, after, shape_of.shape, given=1)
        told = torch.randn(6, 1, 1024, generator=generator) if world else None
        if shape_of.action_dim:
            told = (None, torch.randn(1, 7, generator=generator))
        made.append(Microbatch(one.tokens[None], one.labels[None], one.loss_mask[None],
                               *(told if isinstance(told, tuple) else (told,))))  # fmt: skip
    mine = made[engine.data_rank :: engine.data_ranks]
    several = lambda ones: None if ones[0] is None else torch.cat(ones, 1 if ones[0].ndim == 3 else 0)
    return [Microbatch(*map(several, zip(*mine[i : i + size], strict=True))) for i in range(0, len(mine), size)]


def run(case: dict[str, Any], name: str, folder: Path) -> list[tuple[float, float]]:
    from megatron.core import parallel_state

    from hpc.train.ar_engine import Compute, Engine

    shape_of = case.get("preset", BASE)
    adapters = case.get("lora")
    made = lambda word: torch.Generator().manual_seed(zlib.crc32(word.encode()))
    weights = keys.Initial(shape_of, made, adapters.rank if adapters else 0)
    compute = Compute(**({"precision": "fp32"} | case.get("compute", {})))
    engine = Engine(shape_of, Layout(**case.get("layout", {})), compute, Optimizer(weight_decay=0.1), weights, adapters)
    batches, out = microbatches(shape_of, engine, case.get("micro", 1)), []
    rates = [30 * rate if adapters else rate for rate in RATES]
    again = dict(engine.published())
    assert again.keys() == set(weights)
    assert all(torch.equal(again[word], weights[word].to(engine.config.params_dtype)) for word in weights)
    if name == "decay":
        out = decayed(engine)
        parallel_state.destroy_model_parallel()
        return out
    if before := case.get("load"):
        engine.load(folder / before, SAVED[before]["save"])
        rates = rates[2:]
    for number, rate in enumerate(rates):
        if number == 2 and "save" in case:
            (folder / name).mkdir(exist_ok=True)
            writing = engine.save(folder / name, case["save"])
        shown = engine.run(batches, backward=False) if number == 2 else None  # as validation does
        done = engine.step(batches, rate)
        assert done.moved and done.loss == pytest.approx(done.cross_entropy + done.z_loss)
        assert shown in (None, pytest.approx((done.cross_entropy, done.z_loss)))
        out.append((done.loss, done.grad_norm))
    if "save" in case:
        writing.finish()  # two steps later: what was saved is what was there then
    if adapters:
        moved = {word for word, tensor in engine.published() if not torch.equal(tensor, weights[word])}
        apart = {source for rule in keys.trained(shape_of, adapters.rank).values() for source in rule.sources}
        # attention to one token does not depend on what q and k are
        still = {word for word in apart if re.search(r"cross_attention\.w[qk]\.", word)} if shape_of.action_dim else {}
        assert apart - set(still) <= moved <= apart, "adapters alone are trained, and all of them"
    if name in ("one", "dp2"):
        out.append(not_finite(engine, batches))
    parallel_state.destroy_model_parallel()
    return out


def not_finite(engine: Any, batches: list[Any]) -> tuple[float, float]:
    """A step whose gradients are not finite; then (changes of weights, loss)."""
    before = [p.clone() for p in engine.model.parameters()]
    engine.clear()
    engine.run(batches)
    engine.ddp.buffers[0].grad_data[7] = float("nan")
    norm, moved = engine.update(1.0)
    assert norm != norm and not moved
    changed = sum(int((a != b).sum()) for a, b in zip(before, engine.model.parameters(), strict=True))
    return changed, engine.step(batches, 1e-3).loss


def decayed(engine: Any) -> list[tuple[float, float]]:
    """Of gradients that are 0, (the shape's dimensions, what a step leaves of a weight) of each parameter."""
    before = [p.detach().clone() for p in engine.model.parameters()]
    engine.clear()
    norm, moved = engine.update(0.5)
    assert norm == 0 and moved
    return [(p.ndim, float(p.norm() / old.norm())) for p, old in zip(engine.model.parameters(), before, strict=True)]


def _rank(rank: int, ranks: int, folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with cpu.stand_in():
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
        found = {name: run(case, name, folder) for name, case in cases.items()}
        (folder / f"{ranks}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[float, float]]]:
    """Name -> (loss, norm of gradients) of each step."""
    folder = tmp_path_factory.mktemp("ranks")
    found: dict[str, list[tuple[float, float]]] = {}
    for ranks, cases in ((4, FOUR), (2, TOGETHER), (1, ALONE)):
        processes = [FORKS.Process(target=_rank, args=(rank, ranks, folder, cases)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(480)
            process.kill()
        told = [json.loads((folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(one == told[0] for one in told), "all ranks tell the same"
        found |= told[0]
    return found


@pytest.mark.parametrize("name", [name for name in [*FOUR, *TOGETHER, *ALONE] if name not in ("bf16", "decay")])
def test_the_losses_are_the_same(curves: dict[str, list[tuple[float, float]]], name: str) -> None:
    like = [one for one in ("world", "action lora", "action", "lora", "one") if name.startswith(one)]
    expected = curves[[*like, "one"][0]][:4]
    found = curves[name][:4]
    for (loss, norm), (a, b) in zip(found, expected[-len(found) :], strict=True):
        assert loss == pytest.approx(a, abs=1e-5)
        assert norm == pytest.approx(b, rel=1e-4)
    assert expected[0][0] > expected[3][0] + 0.05, "it learns"


def test_bfloat16_is_near(curves: dict[str, list[tuple[float, float]]]) -> None:
    for (loss, _), (exact, _) in zip(curves["bf16"], curves["one"][:4], strict=True):
        assert loss == pytest.approx(exact, abs=2e-2) and loss != exact


def test_weights_decay_and_norms_do_not(curves: dict[str, list[tuple[float, float]]]) -> None:
    assert {dimensions for dimensions, _ in curves["decay"]} == {1, 2}
    for dimensions, left in curves["decay"]:
        assert left == pytest.approx(1 - 0.5 * 0.1 if dimensions == 2 else 1, abs=1e-6)


@pytest.mark.parametrize("name", ["one", "dp2"])
def test_gradients_that_are_not_finite_change_nothing(curves: dict[str, list[tuple[float, float]]], name: str) -> None:
    changed, loss = curves[name][4]
    assert changed == 0 and loss < curves[name][3][0]
