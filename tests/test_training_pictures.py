"""What trainers make of held-out clips while they train: right, the same on every layout, and nothing else changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ar_runs import SHAPE, run, settings
from diffusion_runs import settings as diffusion_settings
from diffusion_runs import write_latents
from PIL import Image
from stages import ids
from test_form_runs import tokenizer
from trainings import curve, timeless

from hpc.data import video
from hpc.models import tokenizers
from hpc.models.ar import keys
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.models.tokenizers import files
from hpc.train import ar, diffusion, pictures, ranks
from hpc.train.metrics import lines
from hpc.train.samples import listed
from hpc.train.settings.ar import Layout
from hpc.train.settings.ar import Pictures as ArPictures
from hpc.train.settings.diffusion import Pictures
from hpc.train.settings.tokenizer import Sizes
from hpc.train.tokenizer import made as made_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files of two shards, each with a clip that is held out, and a tokenizer, at places of their own."""
    folder = tmp_path_factory.mktemp("tokens")
    for shard in ("000000", "000001"):
        ids.write(folder, shard, SHAPE, 6)
    tokenizer(folder)
    return folder


def rows(place: Path) -> list[dict[str, str]]:
    return [{suffix: str(place / f"{shard}{suffix}") for suffix in (".bin", ".idx", ".parquet")}
            for shard in ("000000", "000001")]  # fmt: skip


def with_pictures(place: Path, **more: Any) -> Any:
    return settings(pictures=ArPictures(every=3, tokenizer=str(place / "dv"), clips=2), **more)


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(1, folder, with_pictures(place), rows(place))
    return folder


def shown(folder: Path, step: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"pictures/{step:09}.webp")).astype(int)


def test_the_curve_is_the_same_without_them(alone: Path, place: Path, tmp_path: Path) -> None:
    """...to the last bit, as are the weights in the end."""
    without = run(1, tmp_path, settings(pictures=ArPictures(clips=0)), rows(place))
    said = list(lines(alone / "metrics.jsonl"))
    assert timeless(said) == timeless(without) and not (tmp_path / "pictures").exists()
    assert [line["step"] for line in said if line.get("pictures_seconds", 0) > 0] == [3, 6]
    one, other = (keys.Published(folder / "model/model.safetensors") for folder in (alone, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_clips_are_gone_on_with_as_generation_does(alone: Path, place: Path, tmp_path: Path) -> None:
    """The picture after the last step is that of the published model."""
    there = sorted(path.name for path in (alone / "pictures").iterdir())
    assert there == [f"{step:09}{end}" for step in (3, 6) for end in (".webp", "_0.mp4", "_1.mp4")]
    info, frames = video.measured((alone / "pictures/000000006_1.mp4").read_bytes())
    assert (info.width, info.height, frames, float(info.fps)) == (64, 64, 17, 24.0)
    given = with_pictures(place)
    model = Decoder(given.preset, keys.Published(alone / "model/model.safetensors"), "cpu", torch.float32)
    dv = tokenizers.load(str(place / "dv"))
    held = ar.dataset(given, rows(place), "valid")
    order = ar.token_data.Batches(held, 2, seed=0).order.batch(0).places
    strips = []
    for number, clip in enumerate(order):
        whole = held[clip].tokens
        [made] = Generator(model, 1)([Prompt(whole[:16], number)])
        assert torch.equal(made[:16], whole[:16])
        both = [dv.decode(one.view(1, *SHAPE).int())[0] for one in (whole, made)]
        strips.append(pictures.strip(*both, frames=5))
    pictures.write(strips, tmp_path / "pictures/000000006.webp")
    assert shown(alone, 6).shape == (2 * 2 * 64 + pictures.GAP, 5 * 64, 3)
    assert np.abs(shown(alone, 6) - shown(tmp_path, 6)).mean() < 1


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2), Layout(context=2), Layout()])
def test_every_layout_makes_the_same(alone: Path, place: Path, tmp_path: Path, layout: Layout) -> None:
    run(2, tmp_path, with_pictures(place, layout=layout), rows(place))
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(
        path.name for path in (alone / "pictures").iterdir())  # fmt: skip
    assert np.abs(shown(tmp_path, 3) - shown(alone, 3)).mean() < 1


def test_without_its_tokenizer_there_are_none(place: Path, tmp_path: Path) -> None:
    """An error on all ranks for one that the settings name."""
    (tmp_path / "metrics.jsonl").touch()
    run(2, tmp_path, settings(steps=2, pictures=ArPictures(tokenizer=str(tmp_path / "none"))), rows(place))
    assert "pictures: tokenizer: " in (tmp_path / "error").read_text()
    assert "there is no tokenizer on this machine" in (tmp_path / "error").read_text()
    with pytest.raises(ValueError, match="a path begins with / or ~"):
        settings(pictures=ArPictures(tokenizer="./dv"))


@pytest.fixture(scope="module")
def here() -> Any:
    torch.set_num_threads(1)
    yield ranks.start()
    dist.destroy_process_group()


def test_a_diffusion_model_learns_the_same_without_them(
    here: ranks.Here, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Videos by the weights and by their mean, from the same noise each time; the curve stays, to the last bit."""
    caplog.set_level(logging.WARNING)
    write_latents(tmp_path / "000000.tar")
    torch.manual_seed(0)
    wan = made_of(Sizes(family="wan", channels=8, latent_channels=16, blocks=1))
    files.save(wan, tmp_path / "vae")
    table = listed([str(tmp_path / "000000.tar")])
    for name, clips in (("with", 1), ("without", 0)):
        given = diffusion_settings(tokenizer=str(tmp_path / "vae"), steps=4,
                                   pictures=Pictures(every=2, clips=clips, steps=2))  # fmt: skip
        diffusion.train(given, table, tmp_path / name, here, lambda: None)
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    assert not (tmp_path / "without/pictures").exists()
    found = sorted(path.name for path in (tmp_path / "with/pictures").iterdir())
    assert found == [f"{step:09}{end}" for step in (2, 4) for end in (".webp", "_0_ema.mp4", "_0_regular.mp4")]
    said = [line for line in lines(tmp_path / "with/metrics.jsonl") if "pictures_seconds" in line]
    assert [line["step"] for line in said] == [2, 4] and all(line["pictures_seconds"] > 0 for line in said)
    info, frames = video.measured((tmp_path / "with/pictures/000000004_0_ema.mp4").read_bytes())
    assert (info.width, info.height, frames) == (48, 64, 13)
