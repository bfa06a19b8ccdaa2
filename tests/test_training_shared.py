"""What trainers share beside data and checkpoints: the rate, the mean of weights, clipping, pictures, pages, hold-outs;
and what `hpc check` says of settings that cannot work."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import runs
import torch
import torch.distributed as dist
import yaml
from torch import nn

from hpc.train import ema, fsdp, page, pictures, ranks
from hpc.train.checkpoint import Checkpoints, Keeper
from hpc.train.samples import SCHEMA, held_out
from hpc.train.saver import Saver, copied, load, state_of
from hpc.train.schedule import rate
from hpc.train.settings.optimizer import Mean, Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    yield ranks.start()
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


# The rate


def test_the_rate_of_each_step() -> None:
    o = Optimizer(rate=0.8, warmup=4, final=0.25)
    assert [rate(o, step, 12) for step in (1, 2, 4)] == pytest.approx([0.2, 0.4, 0.8])
    assert [rate(o, step, 12) for step in (8, 12)] == pytest.approx([0.8 * 0.625, 0.2])
    line = Optimizer(rate=0.8, warmup=0, decay="linear", final=0.0)
    assert [rate(line, step, 8) for step in (2, 6, 8)] == pytest.approx([0.6, 0.2, 0.0])
    assert rate(Optimizer(rate=0.8, warmup=2, decay="constant"), 999, 1000) == 0.8


# The mean of weights


@pytest.mark.parametrize("settings", [Mean(rate=0.75), Mean(width=0.1)])
def test_the_mean_follows_its_formula(settings: Mean) -> None:
    model, draw = network(), torch.Generator().manual_seed(1)
    mean = ema.begin(model)
    expected = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    for step in range(1, 8):
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn(weight.shape, generator=draw)
        kept = 0.75 if settings.rate else (1 - 1 / step) ** 7.94
        for name, weight in model.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * weight.detach().double()
        ema.update(mean, model, ema.share_kept(settings, step))
    for name, one in mean.items():
        torch.testing.assert_close(one.double(), expected[name], atol=2e-3 if settings.width else 1e-6, rtol=0)


def test_the_width_is_that_of_the_weighting() -> None:
    """The share of training that the mean spans, by its own definition: the standard deviation of when the weights that
    it is made of were those of the model, over all steps."""
    assert ema.exponent(0.1) == pytest.approx(6.94, abs=0.005)
    for width in (0.05, 0.1, 0.2):
        steps, weights = 4000, np.zeros(4001)
        for step in range(1, steps + 1):
            kept = ema.share_kept(Mean(width=width), step)
            weights *= kept
            weights[step] = 1 - kept
        assert weights.sum() == pytest.approx(1)
        times = np.arange(steps + 1)
        middle = (weights * times).sum()
        spread = math.sqrt((weights * (times - middle) ** 2).sum())
        assert spread / steps == pytest.approx(width, rel=0.01)


def test_a_model_has_its_own_weights_back(here: ranks.Here) -> None:
    model = network()
    fsdp.shard([model], fsdp.mesh(here.device))
    mean = ema.begin(model)
    x = torch.ones(4, 3)
    with torch.no_grad():
        first = model(x)
        for weight in model.parameters():
            weight.to_local().add_(0.5)
        own = model(x)
        with ema.swapped(mean, model):
            assert torch.equal(model(x), first) and not torch.equal(first, own)
        assert torch.equal(model(x), own)


# Gradients


def test_clipping_is_that_of_torch(here: ranks.Here) -> None:
    one, other = network(), network()
    fsdp.shard([other[0], other[2]], fsdp.mesh(here.device))
    for model in (one, other):
        (100 * model(torch.ones(4, 3))).square().mean().backward()
    expected = float(nn.utils.clip_grad_norm_(one.parameters(), 2.0))
    assert fsdp.clip(other.parameters(), 2.0) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad.full_tensor())
    assert fsdp.clip(other.parameters(), 3.0) == pytest.approx(2.0, rel=1e-4), "not scaled up"
    next(other.parameters()).grad.to_local()[0] = math.nan  # type: ignore[union-attr]
    assert math.isnan(fsdp.clip(other.parameters(), 1.0))
    next(other.parameters()).grad.to_local()[0] = math.inf  # type: ignore[union-attr]
    assert fsdp.clip(other.parameters(), 1.0) == math.inf


# Checkpoints


def test_a_state_is_as_it_was_when_it_was_saved(here: ranks.Here, tmp_path: Path) -> None:
    def training() -> tuple[nn.Module, torch.optim.AdamW]:
        model = network()
        fsdp.shard([model], fsdp.mesh(here.device))
        return model, torch.optim.AdamW(model.parameters(), 0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    model, optimizer = training()
    for _ in range(3):
        step(model, optimizer)
    saver = Saver(Keeper(tmp_path, Checkpoints(), {}, here.writers()), here.files)
    means = [ema.begin(model), {name: 2 * one for name, one in ema.begin(model).items()}]
    state = functools.partial(state_of, model, optimizer, means)
    saver.save(2, state(2, 0))  # its memory is taken again by the next
    step(model, optimizer)
    saver.save(4, state(4, 2, rate=0.5))
    after = [step(model, optimizer) for _ in range(3)]  # while it is written
    saver.wait()
    there = tmp_path / "iter_000000004"
    assert {path.parent.name for path in there.glob("*/.metadata")} == {"model", "optim", "scheduler", "trainer"}
    model, optimizer = training()
    means = [ema.begin(model) for _ in range(2)]
    load(found := state_of(model, optimizer, means, 0, 0), there, here.files)
    assert found["scheduler"] == {"last_epoch": 4, "_last_lr": [0.5]}
    assert found["trainer"] == {"iteration": 4, "skipped": 2}
    for name in means[0]:
        assert torch.equal(means[1][name].full_tensor(), 2 * means[0][name].full_tensor())  # type: ignore[attr-defined]
    assert [step(model, optimizer) for _ in range(3)] == after
    held = copied(found)
    kept = held["model"]["net.0.weight"].to_local().data_ptr()
    step(model, optimizer)
    again = copied(state_of(model, optimizer, means, 0, 0), held)
    now = model.get_parameter("0.weight").to_local()  # type: ignore[attr-defined]
    assert again["model"]["net.0.weight"].to_local().data_ptr() == kept != now.data_ptr()
    assert torch.equal(again["model"]["net.0.weight"].to_local(), now)


def test_what_went_wrong_while_writing_is_told(here: ranks.Here, tmp_path: Path) -> None:
    model = network()
    keeper = Keeper(tmp_path / "kept", Checkpoints(), {}, here.writers())
    saver = Saver(keeper, here.files)
    (tmp_path / "kept").rmdir()
    (tmp_path / "kept").write_text("in the way")
    saver.save(1, {"model": dict(model.named_parameters())})
    with pytest.raises(NotADirectoryError):
        saver.wait()


# What is held out


def samples(*named: tuple[str, str]) -> pa.Table:
    rows = [{"key": key, "source": source, "still": False, "frames": 9, "fps": 8.0} for key, source in named]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_sources_are_held_out_whole() -> None:
    table = samples(*((f"c{n:03}", f"film{n // 5:02}") for n in range(200)))
    known, held = held_out(table, 0.1, "source")
    assert len(held) == 20 and len(known) == 180
    assert not {*known["source"].to_pylist()} & {*held["source"].to_pylist()}
    more = pa.concat_tables([table, samples(*((f"x{n}", "film99") for n in range(5)))])
    assert len({*held_out(more, 0.1, "source")[1]["source"].to_pylist()} & {*held["source"].to_pylist()}) >= 3
    known, held = held_out(table, 0.001, "clip")
    assert len(held) == 1 and len(known) == 199
    with pytest.raises(ValueError, match="1 of 1 sources held out leave nothing to train on: hold out by clip"):
        held_out(samples(("a", "film"), ("b", "film")), 0.1, "source")


def test_a_clip_is_held_out_with_all_its_windows() -> None:
    """Of latents each window is a sample, and its neighbours are nearly the same."""
    clips = [str(uuid.UUID(int=n)) for n in range(20)]
    table = samples(*((f"{clip}_{start}", "film") for clip in clips for start in (0, 9, 18, 27)))
    known, held = ({key.split("_")[0] for key in one["key"].to_pylist()} for one in held_out(table, 0.2, "clip"))
    assert len(held) == 4 and len(known) == 16 and not known & held
    assert len(held_out(table, 0.2, "clip")[1]) == 16
    others = samples(*((f"video_{n:04}", "film") for n in range(80)))
    assert len(held_out(others, 0.2, "clip")[1]) == 16, "of other names each is a clip"


# Pictures and pages


def test_pictures_below_each_other(tmp_path: Path) -> None:
    black, white = torch.full((3, 5, 16, 24), -1.0), torch.full((3, 5, 16, 24), 2.0)
    strips = [pictures.strip(black, white), pictures.strip(white, black, frames=2)]
    assert [tuple(one.shape) for one in strips] == [(32, 72, 3), (32, 48, 3)]
    pictures.write(strips, tmp_path / "p.png")
    shown = np.asarray(PIL.Image.open(tmp_path / "p.png"))
    assert shown.shape == (72, 72, 3)
    assert (shown[0, 0] == 0).all() and (shown[20, 0] == 255).all() and (shown[60, 0] == 0).all()
    assert not list(tmp_path.glob(".*"))


def test_a_page_of_curves(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = [{"step": n, "loss": "nan" if n == 7 else 10.0 / n} for n in range(1, 2001)]
    said[-1]["psnr"] = 30.0
    found = page.points("loss", said)
    assert len(found) <= page.MOST and found[-1][0] == 2000 and all(np.isfinite(y) for _, y in found)
    for name in ("000001000.webp", "000001000_0_ema.mp4", "000002000.webp", "000002000_0_ema.mp4", "x.txt"):
        (tmp_path / name).write_bytes(b"RIFF")
    text = page.page("<A>", {"steps": 2000}, [("loss",), ("psnr", "none"), ("nothing",)], said, tmp_path, "a picture")
    assert text.count("<svg") == 2 and "&lt;A&gt;" in text and text.count("data:image/webp;base64,UklGRg==") == 1
    assert text.count("<video") == 1 and "src='pictures/000002000_0_ema.mp4'" in text
    assert "<a href='pictures/000001000_0_ema.mp4'>1,000 0 ema</a>" in text and "x.txt" not in text
    assert "<video" not in page.page("<A>", {}, [], said, tmp_path / "none", "a picture")


# What `hpc check` says


GOOD: dict[str, Any] = {
    "kind": "train.tokenizer", "needs": "data", "tokenizer": {"family": "cosmos-dv"}, "steps": 2000,
    "shapes": [{"frames": 33, "height": 640, "width": 1024, "batch": 8}], "resources": {"workers": 4, "gpus": 1},
}  # fmt: skip


@pytest.mark.parametrize("wrong, words", [
    ({"shapes": [{"frames": 32, "height": 640, "width": 1024, "batch": 8}]},
     "0.frames: 32 is not 1 + k x 8: make it 25 or 33"),
    ({"shapes": [{"frames": 33, "height": 648, "width": 1024, "batch": 8}]},
     "0.height: 648 / 16 = 40.5: a latent stands for 16 pixels; make it 640 or 656"),
    ({"tokenizer": "nvidia/Cosmos-Tokenize1-CV8x8x8-720p@v1", "shapes": [{"frames": 9, "height": 64, "width": 60,
      "batch": 4}]}, "0.width: 60 / 8 = 7.5: a latent stands for 8 pixels; make it 56 or 64"),
    ({"shapes": [{"frames": 33, "height": 640, "width": 1024, "batch": 6}]},
     "0.batch: 6 samples cannot be shared by 4 ranks (nodes x workers) equally: 6 / 4 = 1.5 each; make it 4 or 8"),
    ({"micro_batch": 3}, "each of 4 ranks has 8 / 4 = 2 samples of shapes.0, which are not a multiple of 3"),
    ({"tokenizer": {"family": "wan", "temporal": 16}}, "temporal: 16 is no power of two from 1 to 8"),
    ({"tokenizer": {"family": "wan", "spatial": 16}}, "spatial: 16 is no power of two from 8: 4 multipliers halve so"),
    ({"tokenizer": {"family": "cosmos-cv", "temporal": 2}}, "2 is no power of two from 4 to 16: patches of 4 and 3"),
    ({"tokenizer": {"family": "cosmos-cv", "levels": [8, 8]}}, "cosmos-cv has none; of cosmos-dv"),
    ({"tokenizer": "nvidia/unknown"}, "no tokenizer is known by this name"),
    ({"steps": 500}, "warmup of 1000 steps: the rate would still be rising at the last of 500 steps"),
    ({"ema": {"width": 0.1, "rate": 0.9}}, "give one of `width` (0.1) and `rate` (0.999)"),
    ({"folder": "here"}, "'here' must begin with / or ~"),
    ({"loss": {"evenness": 0.1}, "tokenizer": {"family": "wan"}}, "evenness is of cosmos-dv; wan has no levels"),
])  # fmt: skip
def test_what_cannot_work_is_said_before_a_gpu_is_asked_for(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    said = checked(tmp_path, GOOD | wrong, code=2)
    assert words in " ".join(said.split())


def test_what_can_work_is_taken(tmp_path: Path) -> None:
    assert "tokenizer (train.tokenizer)" in checked(tmp_path, GOOD, code=0)


def checked(folder: Path, stage: dict[str, Any], code: int) -> str:
    (folder / "in.tar").write_bytes(b"")
    spec = folder / "t.yaml"
    stages = {"data": {"kind": "stages:Tar"}, "tokenizer": stage}
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": "in.tar", "output": "out", "stages": stages}))
    done = runs.hpc("check", spec, code=code)
    return done.stdout + done.stderr
