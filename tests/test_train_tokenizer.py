"""A tokenizer is trained: the same on any number of ranks, after any interruption, and what comes out can be used."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import runs
import torch
import torch.distributed as dist
import transformers
import yaml
from forks import together
from trainings import curve, resumed, torn

from hpc.data import layers
from hpc.data.work import Stopped, Work
from hpc.models import tokenizers
from hpc.train import fsdp, ranks, tokenizer
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.samples import listed
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.optimizer import Mean, Optimizer
from hpc.train.settings.tokenizer import Loss, Perceptual, Sizes

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
SIDE = 32
SIZES = Sizes(family="cosmos-dv", temporal=4, spatial=8, channels=8, multipliers=(1, 2), levels=(8, 5, 5), blocks=1)


def settings(**more: Any) -> TrainTokenizer:
    return TrainTokenizer(**{
        "tokenizer": SIZES, "shapes": (Shape(frames=5, height=SIDE, width=SIDE, batch=4),), "steps": 8, "readers": 0,
        "validation": Validation(share=0.2, by="clip", every=4, clips=3), "checkpoints": Checkpoints(every=3),
        "optimizer": Optimizer(rate=1e-3, warmup=2, weight_decay=0.01), **more,
    })  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of twelve clips: colours that move, with thumbnails beside them, as curate.shard has them."""
    place = tmp_path_factory.mktemp("clips")
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    with layers.TarWriter(place / "000000.tar") as out:
        for number in range(12):
            path = place / "clip.mp4"
            with contextlib.closing(av.open(str(path), "w")) as file:
                stream = file.add_stream("libx264", 10, options={"crf": "5"})
                stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
                for frame in range(7 + number % 3):
                    waves = [np.sin(5 * rows + number + 0.3 * frame), np.cos(7 * columns - 0.2 * frame * number), rows]
                    picture = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
                file.mux(stream.encode(None))
            said = {"num_frames": 7 + number % 3, "fps": 10.0, "width": SIDE, "height": SIDE, "source": "film.mp4"}
            members = {".mp4": path.read_bytes(), ".webp": b"a thumbnail", ".json": json.dumps(said).encode()}
            out.add(f"c{number:02}", members)
    return place / "000000.tar"


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    yield ranks.start()
    dist.destroy_process_group()


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], 1e-3)
        if "psnr" in a:
            assert (a["psnr"], a["ema_psnr"]) == pytest.approx((b["psnr"], b["ema_psnr"]), abs=1e-3)
            assert a["perplexity"] == pytest.approx(b["perplexity"], rel=0.02)


# In ranks of their own


def _train(tar: Path, folder: Path) -> None:
    here = ranks.start()
    tokenizer.train(settings(), listed([str(tar)]), folder, here, lambda: None)
    for shard in (1, 2):
        is_that_of_one_rank(here, shard)
    dist.barrier()
    dist.destroy_process_group()


def is_that_of_one_rank(here: ranks.Here, shard: int) -> None:
    """Gradients and their norm, of weights that lie on groups of so many ranks."""
    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)))
    whole, spread = models
    over = fsdp.mesh(here.device, shard)
    fsdp.shard([spread[0], spread], over)
    (50 * whole(batch)).square().mean().backward()
    (50 * spread(batch.chunk(2)[here.rank])).square().mean().backward()
    expected = float(torch.nn.utils.clip_grad_norm_(whole.parameters(), 1.0))
    assert abs(fsdp.clip(spread.parameters(), 1.0) / expected - 1) < 1e-5
    for one, other in zip(whole.parameters(), spread.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def two(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks in processes of their own, never stopped."""
    folder = tmp_path_factory.mktemp("two")
    for one in together(2, _train, clips, folder):
        one.join(120)
        assert one.exitcode == 0
    return folder


@pytest.fixture(scope="module")
def alone(clips: Path, here: ranks.Here, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One rank, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    tokenizer.train(settings(), listed([str(clips)]), folder, here, lambda: None)
    return curve(folder)


def test_two_ranks_learn_what_one_does(two: Path, alone: list[dict[str, Any]]) -> None:
    near(curve(two), alone)


def test_one_rank_goes_on_from_a_checkpoint_of_two(
    clips: Path, two: Path, alone: list[dict[str, Any]], here: ranks.Here, tmp_path: Path
) -> None:
    """...and one that is torn is not picked."""
    torn(two, tmp_path)
    tokenizer.train(settings(), listed([str(clips)]), tmp_path, here, lambda: None)
    said = curve(tmp_path)
    assert said[:3] == curve(two)[:3] and said[3:] != curve(two)[3:]
    near(said, alone)


def test_a_run_whose_rank_is_killed_is_equal_to_the_last_bit(clips: Path, two: Path, tmp_path: Path) -> None:
    """`hpc run` on two ranks, one of them killed: tried again at once, from the newest checkpoint."""
    said = tokenizer.plain(settings()) | {"kind": "train.tokenizer", "checkpoints": {"every": 3}}
    training = resumed(tmp_path, clips, "tokenizer", said)
    assert curve(training) == curve(two)
    output = tmp_path / "out/tokenizer@v1"
    assert complete(training / "checkpoints") == complete(two / "checkpoints")
    assert json.loads((output / "000000.json").read_text())["ranks"] == 2
    assert tokenizers.load(str(output / "tokenizer")).vocabulary == 200


def test_a_data_set_that_is_there_already(clips: Path, tmp_path: Path) -> None:
    """Without `needs` the inputs are learned from, tars and videos; another one among them makes a new version."""
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips, folder / "a.tar")
    said = tokenizer.plain(settings(steps=2)) | {"checkpoints": {"every": 3}}
    stage = said | {"kind": "train.tokenizer", "resources": {"cpus": 1}}
    spec = tmp_path / "t.yaml"
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": "in", "output": "out", "stages": {"tokenizer": stage}}))
    runs.hpc("run", spec)
    told = json.loads((tmp_path / "out/tokenizer@v1/000000.json").read_text())
    assert told["clips"] == {"trained_on": 10, "held_out": 2}
    assert "nothing to do" in runs.hpc("run", spec).stdout
    (folder / "more").mkdir()
    shutil.copy(clips.parent / "clip.mp4", folder / "more" / "b.mp4")
    prepared = runs.planned(spec)
    runs.finish(runs.worker(prepared, "tokenizer", "barrier"))
    [row] = (tmp_path / "out/tokenizer@v2/_plan.jsonl").read_text().splitlines()
    assert json.loads(row)[1] == [str(folder / "a.tar"), str(folder / "more/b.mp4")]
    assert [key for key in listed(json.loads(row)[1])["key"].to_pylist() if "b" in key] == ["b"]


# In this process


def test_it_learns_and_measures(alone: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in alone] == list(range(1, 9))
    assert alone[-1]["loss"] < 0.9 * alone[0]["loss"] and alone[-1]["psnr"] > alone[3]["psnr"]
    measured = [line["step"] for line in alone if "psnr" in line]
    assert measured == [4, 8]
    assert {"ssim", "ema_psnr", "ema_ssim", "usage", "perplexity", "ema_usage", "ema_perplexity"} <= alone[-1].keys()
    assert 1 <= alone[-1]["perplexity"] <= 200 and alone[-1]["ema_psnr"] != alone[-1]["psnr"]


def test_parts_of_a_share_add_up(
    clips: Path, here: ranks.Here, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    tokenizer.train(settings(micro_batch=1), listed([str(clips)]), tmp_path, here, lambda: None)
    near(curve(tmp_path), alone)


def test_pieces_are_drawn_by_the_samples_number(clips: Path, here: ranks.Here, tmp_path: Path) -> None:
    given = settings(piece=(16, 8), steps=3)
    numbered = torch.arange(2 * 5 * SIDE * SIDE).reshape(2, 5, SIDE, SIDE, 1)
    inside = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    found, shown = tokenizer.pieces(given, [7, 8], numbered, inside)
    assert found.shape == (2, 5, 16, 8, 1) and shown.shape == (2, 16, 8)
    assert torch.equal(found[0, 1] - found[0, 0], torch.full((16, 8, 1), SIDE * SIDE)), "the same place in all frames"
    alone, _ = tokenizer.pieces(given, [8], numbered[1:], inside[1:])
    assert torch.equal(alone[0], found[1]), "whoever has the sample"
    places = {int(tokenizer.pieces(given, [n], numbered[:1], inside[:1])[0].flatten()[0]) for n in range(50)}
    assert len(places) > 20
    tokenizer.train(given, listed([str(clips)]), tmp_path, here, lambda: None)
    said = curve(tmp_path)
    assert len(said) == 3 and "psnr" in said[-1]
    with pytest.raises(ValueError, match=r"piece: 12 / 8 = 1.5: a latent stands for 8 pixels; make it 8 or 16"):
        settings(piece=(16, 12))
    with pytest.raises(ValueError, match=r"piece: \[256, 8\] is larger than the frames of shapes.0"):
        settings(piece=(256, 8))


def test_a_warning_saves_and_leaves(
    clips: Path, here: ranks.Here, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    table, told = listed([str(clips)]), [1, 1, 1, 1, 0]

    def check() -> None:
        if not told.pop(0):
            raise Stopped

    with pytest.raises(Stopped):
        tokenizer.train(settings(), table, tmp_path, here, check)
    assert complete(tmp_path / "checkpoints") == [3, 5]
    tokenizer.train(settings(), table, tmp_path, here, lambda: None)
    assert curve(tmp_path) == alone
    with pytest.raises(ValueError, match="is of another training: seed: 1 there, 2 now"):
        tokenizer.train(settings(seed=2), table, tmp_path, here, lambda: None)


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    clips: Path, here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, losses, step = listed([str(clips)]), tokenizer.losses_of, 0

    def poisoned(*given: Any) -> dict[str, torch.Tensor]:
        nonlocal step
        step += 1
        out = losses(*given)
        return out | {"loss": out["loss"] * (math.nan if step in (3, 5, 6) else 1)}

    monkeypatch.setattr(tokenizer, "losses_of", poisoned)
    tokenizer.train(settings(), table, tmp_path / "a", here, lambda: None)
    said = curve(tmp_path / "a")
    assert [line["skipped"] for line in said] == [0, 0, 1, 1, 2, 3, 3, 3]
    assert said[2]["loss"] == "nan" and said[2]["grad_norm"] == "nan" and said[3]["loss"] != "nan"
    step = 0
    few = settings(optimizer=Optimizer(warmup=2, bad_steps=2))
    with pytest.raises(RuntimeError, match="the gradients of 2 steps in a row, up to step 6, are not finite"):
        tokenizer.train(few, table, tmp_path / "b", here, lambda: None)


@pytest.mark.parametrize("family", ["cosmos-dv", "cosmos-cv", "wan"])
def test_what_is_published_can_be_loaded_and_does_the_same(
    clips: Path, here: ranks.Here, tmp_path: Path, family: str
) -> None:
    small: dict[str, Any] = {
        "cosmos-cv": {"temporal": 4, "channels": 8, "multipliers": (1, 2), "latent_channels": 5},
        "wan": {"channels": 8, "latent_channels": 4, "multipliers": (1, 1, 1, 2)},
    }
    sizes = Sizes(family=family, blocks=1, **small[family]) if family in small else SIZES  # type: ignore[arg-type]
    loss = Loss(evenness=0.1) if family == "cosmos-dv" else Loss(kl=0.01)
    if family == "cosmos-cv":
        seeing = transformers.ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
        transformers.ConvNextV2Model(seeing).save_pretrained(tmp_path / "seeing")
        loss = Loss(perceptual=Perceptual(model=str(tmp_path / "seeing"), weight=0.5))
    given = settings(tokenizer=sizes, steps=3, loss=loss, ema=Mean(rate=0.5),
                     shapes=(Shape(frames=5, height=SIDE, width=SIDE, batch=2),))  # fmt: skip
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (rows,) = tokenizer.freeze(given, {"data": [("000000", {".tar": str(clips)})]}, set())
    work = Work("000000", [], rows, {}, scratch, "f" * 12, lambda: None, lambda share, words: None,
                folder=str(tmp_path / "out" / "t@v1"))  # fmt: skip
    made = tokenizer.process(given, here, work)
    assert [path.name for path in made.objects] == [f"000000{suffix}" for suffix in given.OBJECTS]
    assert all(path.stat().st_size for path in made.objects) and made.counts["steps"] == 3
    told = json.loads(made.objects[-1].read_text())
    assert told["clips"] == {"trained_on": 10, "held_out": 2} and told["last"]["step"] == 3
    terms = {"cosmos-dv": ("unevenness", 0.1), "cosmos-cv": ("perceptual", 0.5), "wan": ("kl", 0.01)}
    name, weight = terms[family]
    assert told["last"][name] > 0
    assert told["last"]["loss"] == pytest.approx(told["last"]["pixels"] + weight * told["last"][name], rel=1e-4)
    assert "<svg" in made.objects[1].read_text() and "data:image/webp" in made.objects[1].read_text()
    place = scratch / "tokenizer"
    names = sorted(uri.removeprefix(f"{work.folder}/") for uri in made.tree)
    assert names == ["pictures/000000003.webp", "tokenizer/config.json", "tokenizer/model.safetensors"]
    loaded = tokenizers.load(str(place))
    again = settings(tokenizer=str(place), steps=1, loss=loss, shapes=given.shapes, optimizer=Optimizer(warmup=0))
    began = tokenizer.first(again)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 5, SIDE, SIDE, 3), dtype=np.uint8))
    video = tokenizer.as_video(frames, torch.device("cpu"))
    with torch.no_grad():
        passed = tokenizer.reconstructed(began, video, None)
        latents = loaded.encode(video)
        torch.testing.assert_close(loaded.decode(latents), passed.video, atol=1e-5, rtol=1e-5)
    if family == "cosmos-dv":
        assert passed.ids is not None and torch.equal(latents, passed.ids)
        assert float(passed.unevenness) <= 1  # type: ignore[arg-type]
    else:  # normalised by what was measured of the clips
        table = listed([str(clips)])
        seen = tokenizer.Batches(table, given.shapes, 1).at(0).frames
        with torch.no_grad():
            spread = loaded.encode(tokenizer.as_video(seen, torch.device("cpu"))).std((0, 2, 3, 4))
        assert 0.3 < float(spread.min()) and float(spread.max()) < 3
    del loaded, made
