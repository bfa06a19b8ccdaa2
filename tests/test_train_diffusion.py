"""A diffusion model is trained: the same however ranks share it, after any interruption; what comes out can be used."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import runs
import torch
import torch.distributed as dist
import yaml
from forks import FORKS
from safetensors.torch import load_file
from test_diffusion import MEAN, STD, Ideal, normal
from test_diffusion import SHAPE as NORMAL
from test_text_embed import save as save_t5
from torch.utils._python_dispatch import TorchDispatchMode

from hpc.data import layers, pickles, video
from hpc.data.latents import SUFFIX, dumps
from hpc.data.video import nvdec
from hpc.data.work import BadInput, Stopped, Work
from hpc.models import dit_files, text_input
from hpc.models.diffusion import EDM, Condition, Flow, Loss, Objective, SigmaFlow
from hpc.models.dit import Block, DiT, LearnedPositions, linear
from hpc.models.dit_presets import PRESETS, Config, parameters
from hpc.models.tokenizers import files
from hpc.train import clips, diffusion, diffusion_model, diffusion_optimizer, ema, ranks, samples, saver
from hpc.train import diffusion_measure as measure
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.diffusion_input import Inputs, draws, dropped, embedding
from hpc.train.estimate import Place
from hpc.train.estimate_diffusion import KEPT, POSITIONS, memory
from hpc.train.loader import Batches
from hpc.train.metrics import CLOCKS, lines
from hpc.train.samples import listed
from hpc.train.schedule import cycled
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW, Lora, Mesh, Pictures, Sizes, Text
from hpc.train.settings.diffusion import Objective as Changed
from hpc.train.settings.optimizer import Cycle, Mean
from hpc.train.settings.tokenizer import Sizes as Wan
from hpc.train.tokenizer import made as made_of

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
SHAPE = {"frames": 13, "height": 64, "width": 48}
LATENT = (16, 4, 8, 6)


def settings(**more: Any) -> TrainDiffusion:
    return TrainDiffusion(**{
        "model": "tiny-predict2", "shapes": (Shape(**SHAPE, batch=4),), "steps": 8, "readers": 0,
        "validation": Validation(share=0.25, by="clip", every=4, clips=3), "checkpoints": Checkpoints(every=3),
        "optimizer": AdamW(rate=3e-3, warmup=2, weight_decay=0.01), "ema": (Mean(width=0.1), Mean(rate=0.5)), **more,
    })  # fmt: skip


def write_latents(path: Path, texts: Mapping[str, bytes | None] = {}) -> None:
    """A tar of twelve clips' latents with embeddings of their captions, as prepare.latents has them. texts: of some
    clips another pickle, or none."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: LATENT[2], : LATENT[3]]
    with layers.TarWriter(path) as out:
        for number in range(12):
            waves = [[np.sin(rows + channel + number + frame) + np.cos(columns * (number % 3 + 1) - frame)
                      for frame in range(LATENT[1])] for channel in range(LATENT[0])]  # fmt: skip
            said = {"num_frames": 13, "fps": 24.0, "height": 64, "width": 48, "inside": [0, 0, 48, 64],
                    "caption": f"wave {number}", "source": "film.mp4"}  # fmt: skip
            text = random.standard_normal((5, 32)).astype(np.float16)
            data = texts.get(f"c{number:02}", pickles.dumps([text]))
            out.add(f"c{number:02}", {SUFFIX: dumps(np.array(waves, np.float32)), ".json": json.dumps(said).encode(),
                                      **({} if data is None else {".pickle": data})})  # fmt: skip


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "000000.tar"
    write_latents(path)
    return path


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    torch.set_num_threads(1)
    yield ranks.start()
    dist.destroy_process_group()


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS}
            for line in lines(folder / "metrics.jsonl")]  # fmt: skip


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=2e-4, abs=1e-5), (a["step"], name)


# In ranks of their own


LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"mesh": Mesh(dp_shard=2)}, "hsdp": {"mesh": Mesh(dp_replicate=2)}, "cp": {"mesh": Mesh(cp=2)},
}  # fmt: skip


def _rank(rank: int, count: int, port: int, layouts: dict[str, dict[str, Any]], tar: Path, folder: Path) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    torch.set_num_threads(1)
    here = ranks.start()
    for name, more in layouts.items():
        to = folder / name
        diffusion.train(settings(**more), listed([str(tar)]), to, here, lambda: None, weights=to / "model")
    dist.barrier()
    dist.destroy_process_group()


def spread(layouts: dict[str, dict[str, Any]], tar: Path, folder: Path) -> None:
    """Two ranks in processes of their own train each of the settings, in a folder of its own, never stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [FORKS.Process(target=_rank, args=(n, 2, port, layouts, tar, folder)) for n in range(2)]
    for one in group:
        one.start()
    for one in group:
        one.join(180)
        assert one.exitcode == 0


@pytest.fixture(scope="module")
def two(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    spread(LAYOUTS, tar, folder)
    return folder


@pytest.fixture(scope="module")
def alone(tar: Path, here: ranks.Here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    diffusion.train(settings(), listed([str(tar)]), folder, here, lambda: None, weights=folder / "model")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_learn_what_one_does(two: Path, alone: Path, layout: str) -> None:
    near(curve(two / layout), curve(alone))


@pytest.mark.parametrize("layout", ["fsdp", "cp"])
def test_one_rank_goes_on_from_a_checkpoint_of_two(
    tar: Path, two: Path, alone: Path, here: ranks.Here, tmp_path: Path, layout: str
) -> None:
    """...and one that is torn is not picked."""
    kept, there = tmp_path / "checkpoints", two / layout
    shutil.copytree(there / "checkpoints/iter_000000003", kept / "iter_000000003")
    shutil.copytree(there / "checkpoints/iter_000000006", kept / "iter_000000006.part")
    shutil.copytree(there / "checkpoints/iter_000000006", kept / "iter_000000006")
    (kept / "iter_000000006/complete").unlink()
    shutil.copy(there / "metrics.jsonl", tmp_path)
    diffusion.train(settings(), listed([str(tar)]), tmp_path, here, lambda: None)
    times = [[line["time"] for line in lines(folder / "metrics.jsonl")] for folder in (tmp_path, there)]
    assert [one == other for one, other in zip(*times, strict=True)] == [True] * 3 + [False] * 5, "from the third on"
    near(curve(tmp_path), curve(alone))


def test_a_run_whose_rank_is_killed_is_equal_to_the_last_bit(tar: Path, two: Path, tmp_path: Path) -> None:
    """`hpc run` on two ranks, one of them killed: tried again at once, from the newest checkpoint."""
    said = clips.plain(settings()) | {"checkpoints": {"every": 3}}
    stage = said | {"kind": "train.diffusion", "needs": "data", "resources": {"workers": 2, "cpus": 1}}
    spec = tmp_path / "t.yaml"
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": str(tar), "output": "out",
                                    "stages": {"data": {"kind": "stages:Tar"}, "world": stage}}))  # fmt: skip
    prepared = runs.planned(spec)
    runs.finish(runs.worker(prepared, "data"))
    runs.finish(runs.worker(prepared, "world", "barrier"))
    file = tmp_path / "out/world@v1/training/metrics.jsonl"
    worker = runs.worker(prepared, "world")
    runs.until(lambda: file.exists() and len(list(lines(file))) >= 4, timeout=90)
    [gang] = runs.children(worker.pid)
    os.kill(runs.children(gang)[-1], signal.SIGKILL)
    runs.finish(worker, timeout=120)
    assert curve(file.parent) == curve(two / "fsdp")
    output = tmp_path / "out/world@v1"
    assert complete(file.parent / "checkpoints") == complete(two / "fsdp/checkpoints")
    told = json.loads((output / "000000.json").read_text())
    assert told["ranks"] == 2 and told["clips"] == {"trained_on": 9, "held_out": 3}
    assert told["held_out"] == str(output / "held_out.json")
    held = (output / "held_out.json").read_bytes()
    assert held == (output / "training/held_out.json").read_bytes() == (two / "fsdp/held_out.json").read_bytes()
    assert len(set(json.loads(held)["clips"])) == 3
    assert {path.name for path in (output / "model").iterdir()} == {
        "model.pt", "model_ema_fp32.pt", "model_ema_bf16.pt", "ours", "ema_2"}  # fmt: skip
    assert dit_files.load(output / "model/ours").config == PRESETS["tiny-predict2"].config
    stopped = [r for r in runs.lines(prepared.run, "world") if getattr(r, "failure", "") == "lost"]
    assert len(stopped) == 1, "it was killed while it trained"


def _killed_while_it_saves(tar: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    write = saver.save

    def half(state: saver.State, to: Path, group: Any) -> None:
        if to.name != "iter_000000006.part":
            return write(state, to, group)
        write({"model": state["model"]}, to, group)
        os.kill(os.getpid(), signal.SIGKILL)

    saver.save = half
    diffusion.train(settings(), listed([str(tar)]), folder, ranks.start(), lambda: None)


def test_two_ranks_go_on_where_one_was_killed_while_it_saved(tar: Path, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fsdp"
    process = FORKS.Process(target=_killed_while_it_saves, args=(tar, folder))
    process.start()
    process.join(180)
    assert process.exitcode == -signal.SIGKILL
    kept = folder / "checkpoints"
    assert complete(kept) == [3] and (kept / "iter_000000006.part/model/.metadata").exists()
    assert (kept / "latest_checkpoint.txt").read_text() == "iter_000000003"
    spread({"fsdp": LAYOUTS["fsdp"]}, tar, tmp_path)
    assert complete(kept) == [3, 6, 8] and not list(kept.glob("*.part"))
    near(curve(folder), curve(alone))


def _measured(tar: Path, folder: Path, given: TrainDiffusion) -> None:
    ranks.memory = lambda device: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # type: ignore
    torch.set_num_threads(1)
    diffusion.train(given, listed([str(tar)]), folder, ranks.start(), lambda: None)


def test_to_go_on_takes_no_more_memory_than_to_begin(tar: Path, tmp_path: Path) -> None:
    """The peak of a process up to its second step, before anything is saved: 26 million weights, 98 MiB for each copy
    of them, so that one copy too many would show."""
    given = settings(sizes=Sizes(channels=512, blocks=6, heads=4, adaln_rank=64), steps=4, ema=(Mean(width=0.1),),
                     validation=Validation(share=0), checkpoints=Checkpoints(every=2))  # fmt: skip
    peaks = []
    for first in (0, 2):
        shutil.rmtree(tmp_path / "checkpoints/iter_000000004", ignore_errors=True)
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(tar, tmp_path, given))
        process.start()
        process.join(180)
        assert process.exitcode == 0
        said = list(lines(tmp_path / "metrics.jsonl"))
        peaks.append(said[first + 1]["memory_bytes"])
    fresh, resumed = peaks
    assert fresh > 5 * 4 * parameters(given.config), "weights, gradients, moments and means"
    assert resumed < fresh + 0.75 * 4 * parameters(given.config)


# In this process


def test_it_learns_and_measures(alone: Path) -> None:
    said = curve(alone)
    assert [line["step"] for line in said] == list(range(1, 9))
    assert [line["step"] for line in said if "held_out" in line] == [4, 8]
    assert said[-1]["held_out"] < said[3]["held_out"]
    names = {f"{mean}held_out_{level}" for mean in ("", "ema_") for level in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert names <= said[-1].keys() and said[-1]["ema_held_out"] != said[-1]["held_out"]
    errors = [line for line in said if any(name.startswith("error_") for name in line)]
    assert len(errors) == 8
    assert all(line["loss"] == pytest.approx(10 * line["error"], rel=1e-5) for line in said), "Predict2 has it tenfold"


@pytest.mark.parametrize("of", [EDM(latent_scale=STD), Flow(), SigmaFlow()])
def test_held_out_errors_of_the_best_network_are_what_noise_hides(of: Objective) -> None:
    """At each level that of x0, s^2 sigma^2 / (s^2 + sigma^2), with the weight of the objective; of given frames 0."""
    x0 = normal(8, *NORMAL) * STD + MEAN
    mask = (torch.arange(4) < torch.tensor([0, 1, 2, 4])[:, None]).float()
    for t in measure.LEVELS:
        sigma = t / (1 - t)
        weight = of.weight(torch.tensor(sigma)).item() if isinstance(of, EDM) else t**-2
        known = STD**2 * sigma**2 / (STD**2 + sigma**2) * weight
        drawn = normal(1, *NORMAL), normal(3, *NORMAL)
        found = measure.errors(of, Ideal(of), x0, Condition(torch.zeros(4, 1, 1), mask), *drawn, t)
        assert found[mask == 1].abs().max() == 0
        torch.testing.assert_close(found[mask == 0], torch.full((9,), known), rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", [EDM, Flow])
def test_errors_are_told_by_noise_level(tar: Path, here: ranks.Here, kind: type[Objective]) -> None:
    """In five bins of t, of an EDM sigma / (1 + sigma); bins without samples are not told."""
    t, error = torch.tensor([0.05, 0.15, 0.5, 0.99]), torch.tensor([1.0, 3.0, 5.0, 7.0])

    class Known(kind):  # type: ignore[valid-type, misc]
        def loss(self, model: DiT, *_: Any) -> Loss:
            level = t / (1 - t) if kind is EDM else t
            return Loss(model.x_embedder.weight.sum() * 0, error, level)

    table, given = listed([str(tar)]), settings()
    inputs = Inputs(given, Flow(), table, here.device)
    batch = Batches(table, given.shapes, 1, read=inputs.read).at(0)
    _, sums, _ = diffusion.gradients(given, DiT(given.config), Known(), inputs, batch, None)
    assert diffusion.levels(sums) == {"error_0.1": 2.0, "error_0.5": 5.0, "error_0.9": 7.0}


def test_what_a_model_is_shown(tar: Path, here: ranks.Here) -> None:
    """Latents scaled as the objective has them, where there is no picture, 24 frames a second where nobody says."""
    given = settings(model="tiny-predict1", text=Text(source="none"))
    inputs = Inputs(given, EDM(), listed([str(tar)]), here.device)
    frames, inside = normal(1, 2, *LATENT), torch.ones(2, 64, 48, dtype=torch.bool)
    inside[1, :, 40:] = False
    seen = inputs.of(frames, inside, torch.tensor([0.0, 12.0]), [])
    assert torch.equal(seen.x0_BCTHW, frames * 0.5) and seen.fps_B.tolist() == [24.0, 12.0]
    assert seen.padding_BHW[0].sum() == 0 and seen.padding_BHW[1].sum() == 8 * 64 and seen.padding_BHW[1, :, 40:].all()
    assert seen.text_BLE.abs().max() == 0


def test_draws_of_many_samples() -> None:
    """Each follows from a sample's number: levels and noise are normal, the shares are those that are asked for."""
    of, numbers, shape = SigmaFlow(given_frames=(0.5, 0.25, 0.25)), range(4000), torch.Size((4000, 1, 3, 2, 2))
    drawn, given_BT = draws(1, numbers, shape, of, True, torch.device("cpu"))
    assert given_BT is not None
    shares = torch.bincount(given_BT.sum(1).long(), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    for one in (drawn.noise_BCTHW, drawn.given_noise_BCTHW, drawn.level_B, drawn.given_level_B):
        assert one is not None and abs(one.mean()) < 0.06 and one.std().item() == pytest.approx(1, abs=0.05)
    assert drawn.high_B2.mean().item() == pytest.approx(0.5, abs=0.03) and 0 <= drawn.high_B2.min() < 0.01
    pairs = (drawn.noise_BCTHW, drawn.given_noise_BCTHW), (drawn.level_B, drawn.given_level_B)
    assert all(abs((a * b).mean()) < 0.06 for a, b in pairs), "of their own"
    again, _ = draws(1, [7, 3], torch.Size((2, *shape[1:])), of, True, torch.device("cpu"))
    assert torch.equal(again.noise_BCTHW[0], drawn.noise_BCTHW[7]) and torch.equal(again.level_B[1], drawn.level_B[3])
    other, _ = draws(2, [7, 3], torch.Size((2, *shape[1:])), of, True, torch.device("cpu"))
    assert not torch.equal(other.noise_BCTHW, again.noise_BCTHW)
    text = torch.ones(4000, 2, 3)
    kept = dropped(text, 1, numbers, 0.2)[:, 0, 0]
    assert set(kept.tolist()) == {0.0, 1.0} and kept.mean().item() == pytest.approx(0.8, abs=0.03)
    assert torch.equal(dropped(text[:2], 1, [7, 3], 0.2)[:, 1, 2], kept[[7, 3]])
    assert torch.equal(dropped(text, 1, numbers, 0.0), text)


def test_held_out_clips_are_looked_at_with_the_same_noise(tar: Path, here: ranks.Here) -> None:
    """Each time, whatever the training's seed is; of other weights it says something else."""
    table, found = listed([str(tar)]), []
    for seed in (1, 1, 2):
        given = settings(seed=seed, text=Text(source="none"))
        of = diffusion_model.objective(given)
        inputs = Inputs(given, of, table, here.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = DiT(given.config)
        held = measure.clips(given, table, inputs, 0, 1)
        found.append(measure.look(given, model, of, inputs, held, None, here))
    assert found[0] == found[1] == found[2] and len(found[0]) == 1 + len(measure.LEVELS)
    torch.nn.init.zeros_(model.final_layer.linear.weight)
    zero = measure.look(given, model, of, inputs, held, None, here)
    assert zero["held_out"] != found[0]["held_out"]
    assert zero["held_out"] == pytest.approx(sum(zero[f"held_out_{t:g}"] for t in measure.LEVELS) / 5)


def test_parts_of_a_share_and_recompute_change_nothing(
    tar: Path, here: ranks.Here, alone: Path, tmp_path: Path
) -> None:
    for recompute in ("blocks", "attention", "matmuls"):
        folder = tmp_path / recompute
        diffusion.train(settings(micro_batch=2, recompute=recompute), listed([str(tar)]), folder, here, lambda: None)
        near(curve(folder), curve(alone))


def test_a_warning_saves_and_leaves(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    table, told = listed([str(tar)]), [1, 1, 1, 1, 0]

    def check() -> None:
        if not told.pop(0):
            raise Stopped

    with pytest.raises(Stopped):
        diffusion.train(settings(), table, tmp_path, here, check)
    assert complete(tmp_path / "checkpoints") == [3, 5]
    held = samples.held_out(table, 0.25, "clip")[1]["key"].to_pylist()
    written = (tmp_path / "held_out.json").read_bytes()
    assert json.loads(written) == {"by": "clip", "clips": sorted(held)}
    (tmp_path / "held_out.json").unlink()  # by an earlier version it was not written
    diffusion.train(settings(), table, tmp_path, here, lambda: None)
    assert curve(tmp_path) == curve(alone) and (tmp_path / "held_out.json").read_bytes() == written
    with pytest.raises(ValueError, match="is of another training: seed: 1 there, 2 now"):
        diffusion.train(settings(seed=2), table, tmp_path, here, lambda: None)
    with pytest.raises(ValueError, match="is of another training: validation"):
        diffusion.train(settings(validation=Validation(share=0.5, by="clip")), table, tmp_path, here, lambda: None)
    assert (tmp_path / "held_out.json").read_bytes() == written, "of the training whose checkpoints are there"


def test_means_are_their_formula(tar: Path, here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights after each step, and as they are published."""
    seen: list[dict[str, torch.Tensor]] = []
    update = ema.update

    def noted(mean: Any, model: Any, kept: float) -> None:
        update(mean, model, kept)
        seen.append({name: one.full_tensor().clone() for name, one in model.named_parameters()})

    monkeypatch.setattr(ema, "update", noted)
    diffusion.train(settings(steps=5), listed([str(tar)]), tmp_path, here, lambda: None, weights=tmp_path / "model")
    steps = seen[::2]  # there are two means
    wide = dict(steps[0])
    for t, weights in enumerate(steps, 1):
        kept = (1 - 1 / t) ** (6.9358 + 1)
        for name, value in weights.items():
            wide[name] = kept * wide[name] + (1 - kept) * value
    found = load_file(tmp_path / "model/ours/model.safetensors")
    for name, value in wide.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    other = load_file(tmp_path / "model/ema_2/model.safetensors")
    name = "blocks.0.mlp.layer1.weight"
    assert not torch.equal(other[name], found[name])


def test_a_step_in_one_pass_is_that_of_one_by_one(here: ranks.Here) -> None:
    """Also its state, which either way goes on with."""
    o, given = AdamW(rate=1e-2, weight_decay=0.1, clip=0.5, betas=(0.9, 0.95)), settings(seed=3)
    both = []
    for at_once in (False, True):
        model = diffusion_model.build(given, here)
        diffusion_model.begin(model, given, here)
        optimizer = diffusion_optimizer.make(model, o)
        means = [ema.begin(model) for _ in range(4)]
        norms = []
        for number in range(4):
            random = torch.Generator().manual_seed(number)
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight)
                weight.grad.to_local().normal_(generator=random)  # type: ignore[attr-defined]
                if number == 2:
                    weight.grad.to_local().fill_(math.nan)  # type: ignore[attr-defined]
            one_pass = at_once and number != 3
            norms.append(diffusion_optimizer.step(model, optimizer, o, means, (0.9, 0.5, 0.1, 0.99), one_pass, "torch"))
        assert math.isnan(norms[2]) and min(norms[0], norms[1]) > 0.5
        both.append((model.state_dict(), means, optimizer.state_dict()["state"]))
    (a, a_means, a_state), (b, b_means, b_state) = both
    near = {"rtol": 1e-5, "atol": 1e-6}
    for name, value in a.items():
        torch.testing.assert_close(b[name].full_tensor(), value.full_tensor(), **near)
    for one, other in zip(a_means, b_means, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name].full_tensor(), value.full_tensor(), **near)
    assert {float(one["step"]) for one in b_state.values()} == {float(one["step"]) for one in a_state.values()} == {3.0}


def test_a_checkpoint_to_files_and_back(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    """DCP -> model.pt -> training that begins with it -> DCP: the same weights, bit for bit; by either average."""
    published = torch.load(alone / "model/model.pt")
    for average in (False, True):
        given = settings(weights=str(alone / "model/model.pt"), average=average)
        model = diffusion_model.build(given, here)
        diffusion_model.begin(model, given, here)
        saver.save({"model": model.state_dict()}, tmp_path / str(average))
        other = diffusion_model.build(settings(), here)
        saver.load({"model": other.state_dict()}, tmp_path / str(average))
        prefix = "net_ema." if average else "net."
        for name, value in other.state_dict().items():
            theirs = published[prefix + dit_files.published(name, "predict2")]
            assert torch.equal(value.full_tensor(), theirs), name


def test_adapters_alone_are_trained_and_added(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    given = settings(weights=str(alone / "model/model.pt"), lora=Lora(rank=2, alpha=6.0), steps=3,
                     optimizer=AdamW(rate=1e-2, warmup=0), ema=(Mean(rate=0.0),))  # fmt: skip
    diffusion.train(given, listed([str(tar)]), tmp_path, here, lambda: None, weights=tmp_path / "model")
    before = torch.load(alone / "model/model.pt")
    after = torch.load(tmp_path / "model/model.pt")
    small = load_file(tmp_path / "model/adapters.safetensors")
    assert len(small) == 2 * 2 * (4 + 4 + 2)
    a, b = (small[f"blocks.1.mlp.layer2.lora_{x}.default.weight"] for x in "AB")
    name = "net.blocks.1.mlp.layer2.weight"
    assert b.abs().max() > 0
    torch.testing.assert_close(after[name], before[name] + 6.0 / 2 * b @ a)
    assert torch.equal(after["net.x_embedder.proj.1.weight"], before["net.x_embedder.proj.1.weight"])
    dit_files.load(tmp_path / "model/model.pt", PRESETS["tiny-predict2"].config)


@pytest.mark.parametrize("model", ["tiny-predict1", "tiny-predict2.5"])
def test_other_models_are_trained_and_published(tar: Path, here: ranks.Here, tmp_path: Path, model: str) -> None:
    """...through the whole stage."""
    shape = (Shape(**SHAPE, batch=4),)
    given = settings(model=model, shapes=shape, text=Text(source="none"), steps=3, ema=(Mean(rate=0.5),))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (rows,) = diffusion.freeze(given, {"data": [("000000", {".tar": str(tar)})]}, set())
    work = Work("000000", [], rows, {}, scratch, "f" * 12, lambda: None, lambda share, words: None,
                folder=str(tmp_path / "out" / "t@v1"))  # fmt: skip
    made = diffusion.process(given, here, work)
    assert [path.name for path in made.objects] == [f"000000{suffix}" for suffix in given.OBJECTS]
    told = json.loads(made.objects[-1].read_text())
    assert told["last"]["step"] == 3 and math.isfinite(told["last"]["held_out"])
    assert "<svg" in made.objects[1].read_text()
    where = scratch / "model"
    names = {str(path.relative_to(where)) for path in made.tree.values() if where in path.parents}
    if model == "tiny-predict1":
        assert names == {"iter_000000003_reg_model.pt", "iter_000000003_ema_model.pt", "ours/config.json",
                         "ours/model.safetensors"}  # fmt: skip
    else:
        assert "model_ema_bf16.pt" in names
    again = dit_files.load(scratch / "model/ours")
    assert isinstance(again, DiT)


def test_a_tokenizer_of_the_same_spec_shows_what_latents_become(tar: Path, here: ranks.Here, tmp_path: Path) -> None:
    """`tokenizer: vae`: its folder stands before the data, and videos are made to look at."""
    torch.manual_seed(0)
    small = Wan(family="wan", channels=8, latent_channels=16, multipliers=(1, 1, 1, 2), blocks=1)
    files.save(made_of(small), tmp_path / "vae")
    (tmp_path / "vae.json").write_text(json.dumps({"tokenizer": str(tmp_path / "vae")}))
    given = settings(tokenizer="vae", text=Text(source="none"), steps=2, pictures=Pictures(every=2, steps=2),
                     validation=Validation(share=0.3, by="clip", every=2, clips=2))  # fmt: skip
    assert given.wired() == {"tokenizer": ("vae", ("train.tokenizer",))} and not settings().wired()
    assert given.compression is None and given.models() == {}
    upstream = {"vae": [("000000", {".json": str(tmp_path / "vae.json")})], "data": [("000000", {".tar": str(tar)})]}
    (rows,) = diffusion.freeze(given, upstream, set())
    assert rows == [str(tmp_path / "vae"), str(tar)]
    (tmp_path / "scratch").mkdir()
    work = Work("000000", [], rows, {}, tmp_path / "scratch", "f" * 12, lambda: None, lambda share, words: None,
                folder=str(tmp_path / "out/t@v1"))  # fmt: skip
    made = diffusion.process(given, here, work)
    shown = sorted(path.name for path in made.tree.values() if path.suffix in (".webp", ".mp4"))
    assert shown == ["000000002.webp", "000000002_0_ema.mp4", "000000002_0_regular.mp4"]


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    tar: Path, here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, given, step = listed([str(tar)]), diffusion.dropped, 0

    def poisoned(*what: Any) -> torch.Tensor:
        nonlocal step
        step += 1
        return given(*what) * (math.nan if step in (3, 5, 6) else 1)

    monkeypatch.setattr(diffusion, "dropped", poisoned)
    diffusion.train(settings(), table, tmp_path / "a", here, lambda: None)
    said = curve(tmp_path / "a")
    assert [line["skipped"] for line in said] == [0, 0, 1, 1, 2, 3, 3, 3]
    assert said[2]["loss"] == "nan" and said[2]["grad_norm"] == "nan" and said[3]["loss"] != "nan"
    step = 0
    few = settings(optimizer=AdamW(warmup=2, bad_steps=2))
    with pytest.raises(RuntimeError, match="the gradients of 2 steps in a row, up to step 6, are not finite"):
        diffusion.train(few, table, tmp_path / "b", here, lambda: None)


def test_videos_and_texts_as_predict2_has_them(
    here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """videos/, metas/ and t5_xxl/, encoded while it trains: texts from disk teach what the encoder teaches, frames of
    the GPU's path what those of readers teach, and videos are made to look at."""
    words = save_t5(tmp_path / "t5", d_model=32)
    encode = text_input.load_text_input("t5", str(words), "cpu")
    small = Wan(family="wan", channels=8, latent_channels=16, multipliers=(1, 1, 1, 2), blocks=1)
    torch.manual_seed(0)
    files.save(made_of(small), tmp_path / "vae")
    data = tmp_path / "data"
    for folder in ("videos", "metas", "t5_xxl"):
        (data / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :48]
    for number in range(6):
        frames = np.stack([np.stack([rows * 3, columns * 4, rows * 0 + 9 * t + 20 * number], -1) for t in range(13)])
        video.write(data / f"videos/v{number}.mp4", frames.astype(np.uint8), 24.0, video.Coding(crf=10))
        prompt = f"a rabbit and {number} butterflies"
        (data / f"metas/v{number}.txt").write_text(prompt)
        found = encode([prompt])[0]
        tokens = int((found.abs().sum(-1) > 0).sum())
        (data / f"t5_xxl/v{number}.pickle").write_bytes(pickles.dumps([found[:tokens].float().numpy().astype("f2")]))
    found_there: Any = sorted(map(str, (data / "videos").iterdir()))  # as the inputs of a stage without needs
    (place,) = clips.freeze(settings(), {"inputs": [("0", found_there)]}, set())
    assert place == [str(data)]
    said = {}
    for source, decode in (("pickles", "auto"), ("encoder", "gpu")):
        given = settings(
            decode=decode,
            shapes=(Shape(**SHAPE, batch=2),), steps=2, tokenizer=str(tmp_path / "vae"), ema=(Mean(rate=0.5),),
            text=Text(source=source, encoder=str(words)), pictures=Pictures(every=2, steps=2, guidance=1.0),
            validation=Validation(share=0.3, by="clip", every=2, clips=2), optimizer=AdamW(rate=1e-2, warmup=0),
        )  # fmt: skip
        if decode == "gpu":  # where there is none its threads, and this path's resizing, are here
            with pytest.raises(ValueError, match="decode: gpu: there is no GPU here: take one"):
                diffusion.train(given, listed(place[0]), tmp_path / "none", here, lambda: None)
            monkeypatch.setattr(nvdec, "device_for", lambda *given: here.device)
        diffusion.train(given, listed(place[0]), tmp_path / source, here, lambda: None)
        said[source] = curve(tmp_path / source)
        assert [line["decoded_by_cpu"] for line in said[source]] == [2 if decode == "gpu" else 0] * 2
    for one, other in zip(said["pickles"], said["encoder"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
    shown = sorted(path.name for path in (tmp_path / "encoder/pictures").iterdir())
    assert shown == ["000000002.webp", "000000002_0_ema.mp4", "000000002_0_regular.mp4"]
    assert video.measured((tmp_path / "encoder/pictures" / shown[1]).read_bytes())[1] == 13
    (data / "t5_xxl/v0.pickle").unlink()
    with pytest.raises(BadInput, match="v0 has no embedding"):
        embedding(listed(place[0]).to_pylist()[0])


def test_texts_that_are_none_are_replaced_and_named(tmp_path: Path, here: ranks.Here) -> None:
    """Code in a pickle, another encoder's vectors, none at all; of a held-out clip it ends before the first step."""

    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    bad = {"c01": (pickle.dumps([Code()]), r"would call posix\.mkdir: it is not run"),
           "c02": (b"", "not a pickle, or damaged"),
           "c03": (pickles.dumps([np.zeros((5, 31))]), "an embedding of 31 channels; the model takes 32"),
           "c04": (pickles.dumps([np.full((5, 32), np.nan)]), "some numbers of its embedding are NaN"),
           "c05": (pickles.dumps([np.zeros(32)]), r"a list of one array \[tokens, channels\] is expected"),
           "c06": (None, "c06 has no embedding of its text beside it")}  # fmt: skip
    write_latents(tmp_path / "latents.tar", {name: data for name, (data, _) in bad.items()})
    table = listed([str(tmp_path / "latents.tar")])
    given = settings(shapes=(Shape(**SHAPE, batch=12),), validation=Validation(share=0))
    batch = Batches(table, given.shapes, 1, read=Inputs(given, Flow(), table, here.device).read, channels=16).at(0)
    assert len(batch.replaced) >= len(bad) and not (tmp_path / "ran").exists()
    for name, (_, words) in bad.items():
        assert [one for one in batch.replaced if re.match(rf"{name} \(.*{words}", one)], name
        held = table.filter(pc.equal(table["key"], name))
        with pytest.raises(ValueError, match=rf"validation: {name}.*{words}|validation: {words}"):
            measure.clips(given, held, Inputs(given, Flow(), table, here.device), 0, 1)


def test_a_training_whose_figures_are_none_ends_and_says_so(alone: Path) -> None:
    """Weights that went astray after the last look: their page is written all the same."""
    said = list(lines(alone / "metrics.jsonl"))
    said[-1] |= {"held_out": "nan", "ema_held_out": "inf", "loss": "nan"}
    told = {"steps": 8, "samples": 32, "clips": {}, "parameters": 1, "ranks": 1, "skipped": 0, "gpu_hours": 0.1,
            "model": "m", "last": said[-1]}  # fmt: skip
    shown = diffusion.as_page(told, said, alone)
    assert "<td>held_out<td>nan" in shown and "<td>ema_held_out<td>inf" in shown and "<svg" in shown


def test_what_cannot_be_is_said_with_the_arithmetic() -> None:
    """...before anything is started."""
    shape = Shape(frames=93, height=704, width=1280, batch=8)

    def wrong(words: str, ranks: int = 8, **more: Any) -> None:
        with pytest.raises(ValueError, match=words):
            settings(model="predict2.5-2b", shapes=(shape,), **more).shared_by(ranks)

    wrong(r"shapes: 0.batch: 8 samples / \(6 ranks / cp 1 = 6\) = 1.333: make it 6 or 12", 6)
    wrong(r"mesh: dp_replicate 3 x dp_shard any x cp 1 are not 8 ranks", mesh=Mesh(dp_replicate=3))
    wrong(r"mesh: cp: 16 heads / 3 = 5.333", 6, mesh=Mesh(cp=3))
    wrong(r"mesh: cp: 24 latent frames of shapes.0 / 16 = 1.5", 16, mesh=Mesh(cp=16))
    wrong(r"objective: multiplier: predict2.5-2b is trained as flow, which has given_frames, shift",
          objective=Changed(multiplier=2.0))  # fmt: skip
    wrong(r"lora: adapters to random weights teach nothing", lora=Lora())
    wrong(r"gpu_memory: about \d+ GiB a GPU are needed, of 20: weights 1.\d.*\d+ GiB with `recompute: blocks`",
          gpu_memory=20 * 2**30)  # fmt: skip
    with pytest.raises(ValueError, match=r"shapes: 0.frames: 90 is not 1 \+ k x 4: make it 89 or 93"):
        settings(model="predict2.5-2b", shapes=(Shape(frames=90, height=704, width=1280, batch=8),))
    with pytest.raises(ValueError, match=r"precision: fp8-current: 9 tokens of a sample of shapes.0 / 16 = 0.5625"):
        settings(model="predict2.5-2b", shapes=(Shape(frames=1, height=48, width=48, batch=8),),
                 precision="fp8-current").shared_by(8)  # fmt: skip
    fits = settings(model="predict2.5-2b", shapes=(shape,), mesh=Mesh(cp=2), precision="fp8-current")
    fits.shared_by(8)
    half, whole = (memory(fits, Place(ranks=ranks))["weights"] for ranks in (16, 8))
    assert half == pytest.approx(whole / 2)


class Counted(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "attention", "matmuls", "gelu"), [
    ("none", 1, 0, 1), ("matmuls", 1, 0, 2), ("attention", 1, 1, 2), ("blocks", 2, 1, 2),
])  # fmt: skip
def test_what_is_computed_again(recompute: Any, attention: int, matmuls: int, gelu: int) -> None:
    """Of a block's forward and backward pass: how often attention and GELU run, and whether its matrices do twice."""
    config = Config(channels=48, blocks=1, heads=2, condition_mask=True, text_channels=32)

    def run(again: Any) -> Counter[str]:
        block = Block(config, linear)
        given = (torch.randn(1, 1, 48), torch.randn(1, 1, 144), torch.randn(1, 16, 32),
                 (torch.randn(1, 64, 1, 24), torch.randn(1, 64, 1, 24)))  # fmt: skip
        forward = diffusion_model.recomputed(block.forward, again, settings(), torch.device("cpu"))
        with Counted() as counted:
            (block.forward if again == "none" else forward)(torch.randn(1, 1, 64, 48), *given, None).sum().backward()
        return counted.seen

    plain, found = run("none"), run(recompute)
    of_attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert plain[of_attention] == 2 and plain["gelu"] == 1
    assert found[of_attention] == 2 * attention and found["gelu"] == gelu
    assert (found["mm"] > plain["mm"]) == bool(matmuls) and found["mm"] >= plain["mm"]


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_a_block_keeps_what_is_estimated(recompute: str) -> None:
    config = Config(channels=256, blocks=1, heads=2, condition_mask=True, text_channels=32)
    block, tokens = Block(config, linear).bfloat16(), 2048
    x = torch.randn(1, 1, tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    given = (torch.randn(1, 1, 256), torch.randn(1, 1, 768), torch.randn(1, 16, 32, dtype=torch.bfloat16),
             (torch.randn(1, tokens, 1, 128), torch.randn(1, tokens, 1, 128)))  # fmt: skip
    shared = {one.untyped_storage().data_ptr() for one in (*block.parameters(), *given[:3], *given[3])}
    kept: dict[int, torch.Tensor] = {}

    def keep(one: torch.Tensor) -> torch.Tensor:
        if one.untyped_storage().data_ptr() not in shared:
            kept[one.untyped_storage().data_ptr()] = one
        return one

    forward = block.forward
    if recompute != "none":
        forward = diffusion_model.recomputed(forward, recompute, settings(), torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        forward(x, *given, None)
    found = sum(one.untyped_storage().nbytes() for one in kept.values()) / tokens / 256
    if recompute == "none":
        found -= 12  # what a GPU's norms of q and k do not keep: three float32
    assert found == pytest.approx(KEPT[recompute], rel=0.05)


def test_learned_positions_keep_what_is_estimated() -> None:
    config = Config(channels=256, blocks=1, heads=2, condition_mask=True, text_channels=32, learned_positions=True)
    positions, kept = LearnedPositions(config), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.setdefault(one.data_ptr(), one), lambda one: one):
        taken = positions(0, 2, 32, 32).to(torch.bfloat16)
    found = sum(one.untyped_storage().nbytes() for one in kept.values()) + 2 * taken.nbytes  # itself and its gradient
    assert found / taken.numel() == pytest.approx(POSITIONS, rel=0.05)


@pytest.mark.parametrize("cycle, shares", [
    (Cycle(f_max=0.5, f_min=0.2, warmup=2000, length=100_000),
     {0: 1e-06, 1: 0.0002509995, 1999: 0.49975000049999996, 2000: 0.5, 2001: 0.4999969387755102,
      50_000: 0.35306122448979593, 99_999: 0.2000030612244898, 100_000: 0.2}),
    (Cycle(), {0: 1e-06, 50: 0.49500049999999995, 99: 0.9801000099999999, 100: 0.99, 1999: 0.9871982745686422,
               50_000: 0.9163790947736934, 100_000: 0.8426106526631658}),
])  # fmt: skip
def test_the_published_schedule(cycle: Cycle, shares: dict[int, float]) -> None:
    """What LambdaLinearScheduler of cosmos_predict2 661da47 and of cosmos_predict2.5 50369b8 gives, by running it, for
    the published post-training of the 2B and for the published training."""
    for n, share in shares.items():
        assert cycled(cycle, 2**-14.5, n + 1) == pytest.approx(2**-14.5 * share, rel=1e-9)
    assert cycled(cycle, 1.0, cycle.length + 9999) == cycle.f_min
    with pytest.raises(ValueError, match="length: 100 steps must be more than the 100 of warmup"):
        Cycle(warmup=100, length=100)
