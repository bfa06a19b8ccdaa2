"""What a diffusion model is trained on: latents, videos and texts, and what is drawn for each sample."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import tiny_models
import torch
from diffusion_runs import LATENT, SHAPE, here, settings, tar, write_latents
from test_diffusion import normal
from test_text_embed import save as save_t5
from trainings import curve

from hpc.data import pickles, video
from hpc.data.video import nvdec
from hpc.data.work import BadInput
from hpc.models import text_input
from hpc.models.diffusion import EDM, Flow, SigmaFlow
from hpc.models.tokenizers import files
from hpc.train import clips, diffusion, diffusion_model, ranks
from hpc.train import diffusion_measure as measure
from hpc.train.diffusion_input import Inputs, draws, dropped, embedding
from hpc.train.loader import Batches
from hpc.train.samples import listed
from hpc.train.schedule import cycled
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW, Objective, Pictures, Text
from hpc.train.settings.optimizer import Cycle, Mean
from hpc.train.settings.tokenizer import Sizes as Wan
from hpc.train.tokenizer import made as made_of

__all__ = ["here", "tar"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


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


def test_predict25_as_published_reads_captions_by_qwen(here: ranks.Here, tar: Path, tmp_path: Path) -> None:
    """...while it trains, and its rate goes up and down as the spec has it."""
    qwen = tiny_models.qwen2_5_vl(tmp_path / "qwen")
    cycle = Cycle(f_max=0.5, f_min=0.2, warmup=1, length=3)
    said = {}
    for name, dropout in (("read", 0.0), ("dropped", 1.0)):
        given = settings(
            model="tiny-predict2.5", text=Text(source="encoder", encoder=str(qwen), dropout=dropout), steps=3,
            shapes=(Shape(**SHAPE, batch=1),), optimizer=AdamW(rate=1e-2, cycle=cycle), validation=Validation(share=0),
        )  # fmt: skip
        diffusion.train(given, listed([str(tar)]), tmp_path / name, here, lambda: None)
        said[name] = curve(tmp_path / name)
    rates = [cycled(cycle, 1e-2, step) for step in (1, 2, 3)]
    assert [line["rate"] for line in said["read"]] == pytest.approx(rates) and len({*rates}) == 3
    assert all(one["loss"] != other["loss"] for one, other in zip(*said.values(), strict=True))


@pytest.mark.parametrize(("model", "fields"), [
    ("tiny-predict1", {"given_frames": (0.5, 0.5), "multiplier": 2.0, "latent_scale": 0.7}),
    ("tiny-predict2", {"given_frames": (0.5, 0.5), "high": 0.3, "given_level": 0.2, "loss_scale": 3.0,
                       "multiplier": 2.0, "latent_scale": 0.7}),
    ("tiny-predict2.5", {"given_frames": (0.5, 0.5), "high": 0.3, "given_level": 0.2, "loss_scale": 3.0, "shift": 2.0,
                         "latent_scale": 0.7}),
])  # fmt: skip
def test_each_field_of_an_objective_arrives(model: str, fields: dict[str, Any]) -> None:
    of = diffusion_model.objective(settings(model=model, text=Text(source="none"), objective=Objective(**fields)))
    known = diffusion_model.objective(settings(model=model, text=Text(source="none")))
    told = fields if of.given_frames != (1.0,) else fields | {"given_frames": (1.0,)}  # of text alone
    assert {name: getattr(of, name) for name in fields} == told
    assert all(getattr(known, name) != value for name, value in fields.items() if name != "given_frames")
    assert set(fields) == set(Objective.OF[settings(model=model, text=Text(source="none")).preset.objective])


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
