"""generate.ar by the real worker: from made tokens over training and conversion to videos, by tiny models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs
import torch
import yaml
from test_generate import film, picture, rows_of, work
from test_text_embed import save

from hpc.batch.kinds import settings_of
from hpc.data import layers, storage, video
from hpc.data.work import Item
from hpc.generate import ar, media, prompts
from hpc.generate.settings import Ar, ArPrompts
from hpc.models.ar import keys
from hpc.models.ar.presets import preset
from hpc.models.tokenizers import cosmos, files

pytestmark = pytest.mark.filterwarnings("ignore")  # megatron-core's, of what is not installed
SHAPE = (3, 4, 4)
FRAMES, SIDE = 17, 64  # 1 + 8 + 8 frames, and 4 x 16 pixels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tokenizer of 64,000 ids, and two models with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    files.save(cosmos.CosmosDiscrete(cosmos.Config(channels=8)), folder / "tokenizer")
    save(folder / "t5", d_model=1024)
    for name in ("ar-tiny", "ar-tiny-video2world"):
        shape_of = msgspec.structs.replace(preset(name), shape=SHAPE)
        source = keys.Initial(shape_of, lambda name: torch.Generator().manual_seed(len(name)))
        (folder / name).mkdir()
        torch.save(dict(source), folder / name / "model.pt")
    return folder


def values(models: Path, name: str = "ar-tiny", **more: Any) -> dict[str, Any]:
    return {
        "model": name, "shape": list(SHAPE), "weights": str(models / name), "tokenizer": str(models / "tokenizer"),
        "text_encoder": str(models / "t5"), "precision": "float32", "batch": 2, **more,
    }  # fmt: skip


def maker(models: Path, name: str = "ar-tiny", **more: Any) -> ar.Maker:
    return ar.Maker(settings_of("generate.ar", values(models, name, **more)))


def asked(folder: Path) -> Path:
    """Two videos and a picture to go on from; a file names one of them."""
    folder.mkdir()
    (folder / "x.txt").write_text("for the stage that makes tokens")
    picture(folder / "a.png", 5)
    film(folder / "b.mp4", 12)
    film(folder / "c.mp4", 10)
    (folder / "list.jsonl").write_text('{"visual_input": "b.mp4"}\n')
    return folder


def spec(folder: Path, stages: dict[str, Any], name: str = "g") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "inputs": "in", "output": f"out-{name}", "stages": stages},
                                   sort_keys=False))  # fmt: skip
    return path


def members(row: dict[str, Any]) -> dict[str, bytes]:
    with row["tar"].open("rb") as tar:
        return dict(layers.read_tar(tar))[row["name"]]


def ids(row: dict[str, Any]) -> np.ndarray:
    data = row["tar"].read_bytes()[row["npy_offset"] : row["npy_offset"] + row["npy_size"]]
    assert data == members(row)[".npy"]
    return np.load(io.BytesIO(data))


def checked(row: dict[str, Any], by: ar.Maker) -> np.ndarray:
    """The ids of a video, after a look at all that is there of it."""
    found, there = ids(row), members(row)
    assert found.shape == SHAPE and found.dtype == np.int32 and 0 <= found.min() and found.max() < 64_000
    info, count = video.measured(there[".mp4"])
    assert (info.width, info.height, count, info.fps) == (SIDE, SIDE, FRAMES, 25)
    assert json.loads(there[".json"])["given"] == row["given"]
    one = prompts.Request(name="x", prompt="", source="s", etag="e", media=row["media"],
                          media_etag=storage.stat(row["media"]).etag)  # fmt: skip
    pictures = media.frames(one, 1 + 8 * (row["given"] - 1), SIDE, SIDE)
    pixels = torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert np.array_equal(found[: row["given"]], by.tokenizer.encode(pixels)[0].numpy()), "as the tokenizer made them"
    shown = by.tokenizer.decode(torch.from_numpy(found)[None])[0].permute(1, 2, 3, 0)
    wanted = ((shown + 1) * 127.5).clamp(0, 255).numpy()
    frames = by.frames(torch.from_numpy(found).flatten())
    assert np.abs(frames - wanted).max() <= 0.51
    again = row["tar"].parent / f".{row['name']}.mp4"
    video.write(again, frames, 25, video.Coding(crf=by.settings.crf))
    assert again.read_bytes() == there[".mp4"], "the mp4 shows these ids"
    again.unlink()
    return found


# The stage


def test_from_tokens_to_videos(tmp_path: Path, models: Path) -> None:
    asked(tmp_path / "in")
    given = {k: v for k, v in values(models).items() if k != "weights"}
    train = {"kind": "train.ar", "needs": "ids", "model": "ar-tiny", "shape": list(SHAPE), "steps": 3, "batch": 2,
             "precision": "fp32", "readers": 0, "checkpoints": {"every": 2}, "validation": {"clips": 0},
             "resources": {"cpus": 1}}  # fmt: skip
    one = {"cpus": 1}
    file = spec(tmp_path, {
        "ids": {"kind": "stages:Ids", "shape": list(SHAPE), "resources": one}, "ar": train,
        "convert": {"kind": "convert.ar", "needs": "ar", "resources": one},
        "videos": {"kind": "generate.ar", "needs": "convert", "per_shard": 2, "resources": one, **given},
    })  # fmt: skip
    runs.go(file)
    out = tmp_path / "out-g"
    told = json.loads((out / "convert@v1/000000.json").read_text())
    assert told["step"] == 3 and told["files"] == ["model.pt"]
    ours, theirs = keys.Published(out / "convert@v1/model.pt"), keys.Published(out / "ar@v1/model/model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and set(ours) == set(theirs)
    rows = {row["name"]: row for row in rows_of(out)}
    assert {name: row["given"] for name, row in rows.items()} == {"a": 1, "c": 2, "list": 2}
    assert rows["list"]["media"].endswith("b.mp4") and len({row["tar"] for row in rows.values()}) == 2
    by = maker(models, weights=str(out / "convert@v1/model.pt"))
    found = {name: checked(row, by) for name, row in rows.items()}
    assert not np.array_equal(found["c"][2], found["list"][2])
    # the same, wherever it stands: here alone
    row = rows["list"]
    one_more = prompts.Request(name="list", prompt="", source="s", etag="e", media=row["media"], given=2,
                               media_etag=storage.stat(row["media"]).etag)  # fmt: skip
    made = ar.process(by, work(tmp_path / "w", rows=[msgspec.to_builtins(one_more) | {"weights": by.weights}]))
    with made.objects[0].open("rb") as tar:
        assert dict(layers.read_tar(tar))["list"][".npy"] == members(row)[".npy"]
    assert made.counts["ids"] == 16
    assert runs.planned(file).attempt is None, "again: nothing to do"


def test_ranks_make_what_one_makes(tmp_path: Path, models: Path) -> None:
    asked(tmp_path / "in")
    found = []
    for tensor in (1, 2):
        stage = {"kind": "generate.ar", "tensor": tensor, "resources": {"cpus": 1, "workers": tensor}}
        runs.go(spec(tmp_path, {"videos": stage | values(models)}, f"t{tensor}"))
        found.append({row["name"]: ids(row) for row in rows_of(tmp_path / f"out-t{tensor}")})
    assert found[0].keys() == found[1].keys() == {"a", "c", "list"}
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_prompts_count(tmp_path: Path, models: Path) -> None:
    asked(tmp_path / "in")
    by = maker(models, "ar-tiny-video2world")
    path = tmp_path / "in/words.json"
    path.write_text(json.dumps([
        {"name": "rain", "prompt": "Rain.", "input_path": "a.png"},
        {"name": "sun", "prompt": "Sun.", "input_path": "a.png"},
        {"name": "alone", "prompt": "Rain."}, {"name": "other", "prompt": "Rain.", "input_path": "a.png", "seed": 5},
        {"name": "again", "prompt": "Rain.", "input_path": "a.png", "seed": 1},
        {"name": "large", "prompt": "Rain.", "resolution": "640,1024"},
        {"name": "long", "prompt": "Rain.", "num_output_frames": 33},
        {"name": "short", "prompt": "Rain.", "input_path": "c.mp4"},
    ]))  # fmt: skip
    by.settings = msgspec.structs.replace(by.settings, given=2)
    rows = [msgspec.to_builtins(one) | {"weights": by.weights} for one in
            prompts.requests(path.read_bytes(), str(path), "e")]  # fmt: skip
    rows[0]["held_out"] = "/out/ar@v1/held_out.json"
    made = ar.process(by, work(tmp_path / "w", rows=rows))
    table = layers.read_table(made.objects[1]).to_pylist()
    assert {row["name"]: row["why"] for row in table if row["why"]} == {"large": "bad-size", "long": "bad-frames"}
    assert {row["name"]: row["held_out"] for row in table if row["held_out"]} == {"rain": "/out/ar@v1/held_out.json"}
    found = {row["name"]: ids(row | {"tar": made.objects[0]}) for row in table if not row["why"]}
    assert np.array_equal(found["rain"][0], found["sun"][0]) and not np.array_equal(found["rain"], found["sun"])
    assert np.array_equal(found["rain"], found["again"]) and not np.array_equal(found["rain"], found["other"])
    assert made.counts["ids"] == 48 + 4 * 32 + 16 and len(made.bad) == 2
    wordless = [rows[0] | {"prompt": ""}]
    assert [bad.reason for bad in ar.process(by, work(tmp_path / "w2", rows=wordless)).bad] == ["no-prompt"]


# What is planned


def test_what_is_asked_for_is_planned_with_its_model(tmp_path: Path, models: Path) -> None:
    """A stage train.ar leaves a .jsonl, too, which is none of prompts; what a file of prompts names is no prompt of its
    own; a spec with other inputs names a file."""
    asked(tmp_path / "in")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").touch()
    (tmp_path / "model/config.json").write_text(json.dumps({"preset": "ar-tiny", "shape": SHAPE}))
    (tmp_path / "000000.json").write_text(json.dumps({"model": str(tmp_path / "model")}))
    (tmp_path / "000000.jsonl").write_text('{"step": 1}\n')
    trained = [("000000", {s: str(tmp_path / f"000000{s}") for s in (".jsonl", ".json")})]
    items = [Item(str(path), path.stat().st_size, storage.stat(str(path)).etag) for path in
             sorted((tmp_path / "in").iterdir()) if path.suffix != ".txt"]  # fmt: skip
    made = prompts.start(ArPrompts())(work(tmp_path / "w", items))
    settings = Ar(model="ar-tiny", shape=SHAPE, per_shard=2)
    upstream = {"ar": trained, "videos-prompts": [("000000", {".jsonl": str(made.objects[0])})]}
    first, second = ar.freeze(settings, upstream, set())
    assert [row["name"] for row in first + second] == ["a", "c", "list"]
    assert {row["weights"] for row in first + second} == {str(tmp_path / "model/model.safetensors")}
    given = msgspec.structs.replace(settings, prompts=str(tmp_path / "in/list.jsonl"))
    [[row]] = ar.freeze(given, {"ar": trained}, set())
    assert (row["name"], row["media"], row["given"]) == ("list", str(tmp_path / "in/b.mp4"), 2)
    with pytest.raises(ValueError, match="prompts: there is no /nowhere"):
        list(ar.freeze(msgspec.structs.replace(settings, prompts="/nowhere"), {"ar": trained}, set()))
    (tmp_path / "in/list.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"prompts: .*\n.*no-json"):
        list(ar.freeze(given, {"ar": trained}, set()))


# What cannot be


def test_models_that_do_not_go_together(tmp_path: Path, models: Path) -> None:
    files.save(cosmos.CosmosContinuous(cosmos.Config(channels=8, levels=(), latent_channels=16)), tmp_path / "vae")
    with pytest.raises(ValueError, match="has no ids, and ar-tiny chooses among 64000"):
        maker(models, tokenizer=str(tmp_path / "vae"))
    with pytest.raises(ValueError, match=r"left over: model\.layers\.0\.cross_attention"):
        maker(models, weights=str(models / "ar-tiny-video2world"))
    save(tmp_path / "t5", d_model=32)
    with pytest.raises(ValueError, match="makes texts of 32 channels; ar-tiny-video2world takes 1024"):
        maker(models, "ar-tiny-video2world", text_encoder=str(tmp_path / "t5"))
    told = {"model": str(tmp_path)}
    (tmp_path / "000000.json").write_text(json.dumps(told))
    (tmp_path / "config.json").write_text(json.dumps({"preset": "ar-4b", "shape": [5, 40, 64]}))
    with pytest.raises(ValueError, match=r"ar has trained ar-4b on latents \[5, 40, 64\], and this is ar-tiny on"):
        ar.trained(Ar(model="ar-tiny", shape=SHAPE), "ar", str(tmp_path / "000000.json"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "ar-4"}, "model: 'ar-4' is no autoregressive model; did you mean ar-4b"),
        ({"given": 3}, "given: 3 of 3 latent frames leave nothing to make"),
        ({"prompts": "a.jsonl"}, "prompts: 'a.jsonl': a path begins with / or ~"),
        ({"prompts": "/a.jsonl"}, "write it as the spec's `inputs`"),
        ({"weights": None}, "one stage train.ar or convert.ar must make the model, or `weights` must say where it is"),
        ({"needs": "ids"}, "generate.ar takes a model from train.ar or convert.ar, and nothing from stages:Ids"),
        ({"tensor": 2}, "tensor: 2 GPUs have the model together, and there are 1 ranks (workers)"),
    ],
)
def test_what_a_spec_cannot_say(more: dict[str, Any], words: str, tmp_path: Path, models: Path) -> None:
    asked(tmp_path / "in")
    stages = {"ids": {"kind": "stages:Ids"}, "videos": {"kind": "generate.ar", **values(models), **more}}
    assert words in runs.hpc("check", spec(tmp_path, stages), code=2).stderr
