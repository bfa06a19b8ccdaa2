"""generate.diffusion by the real worker: a tiny transformer, a tiny VAE and tiny text encoders with random weights."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL.Image
import pytest
import runs
import tiny_models
import torch
import yaml
from test_text_embed import save

from hpc.batch import inputs
from hpc.batch.kinds import settings_of
from hpc.batch.spec import Inputs, load
from hpc.data import layers, storage, video
from hpc.data.work import BadInput, Item, Work
from hpc.generate import diffusion, media, prompts, videos
from hpc.generate.settings import Diffusion, Prompts
from hpc.models import dit_files
from hpc.models.dit import DiT
from hpc.models.dit_presets import PRESETS
from hpc.models.tokenizers import cosmos, files, wan

JOBS = Path(__file__).parents[1] / "jobs"
HEIGHT, WIDTH, FRAMES = 32, 48, 9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that name tiny models."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    model = DiT(PRESETS["tiny-predict2.5"].config)
    for block in model.blocks:  # a new one would not listen to texts
        for name in ("self_attn", "cross_attn", "mlp"):
            torch.nn.init.normal_(getattr(block, f"adaln_modulation_{name}")[2].weight, std=1.0)
    dit_files.save(model.state_dict(), model.config, folder / "dit")
    files.save(wan.WanVAE(wan.Config(channels=8)), folder / "vae")
    tiny_models.qwen2_5_vl(folder / "qwen")
    return {
        "model": "tiny-predict2.5", "weights": str(folder / "dit"), "tokenizer": str(folder / "vae"),
        "text_encoder": str(folder / "qwen"), "frames": FRAMES, "size": [HEIGHT, WIDTH], "steps": 2, "guidance": 1.0,
        "precision": "float32", "fps": 16.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def maker(models: dict[str, Any]) -> diffusion.Maker:
    return diffusion.Maker(settings_of("generate.diffusion", models))


def picture(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    small = PIL.Image.fromarray(rng.integers(0, 255, (4, 6, 3), np.uint8))
    small.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC).save(path)
    return path


def film(path: Path, frames: int = 12) -> Path:
    rng = np.random.default_rng(3)
    small = [PIL.Image.fromarray(rng.integers(0, 255, (4, 6, 3), np.uint8)) for _ in range(frames)]
    large = [np.asarray(one.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)) for one in small]
    video.write(path, np.stack(large), 16, video.Coding(crf=5.0))
    return path


def asked(folder: Path) -> Path:
    """A folder with prompts in each of the published formats."""
    folder.mkdir()
    picture(folder / "robot.png")
    film(folder / "street.mp4")
    (folder / "rain.txt").write_text("Rain.\n")
    (folder / "a_predict25.json").write_text(json.dumps({
        "inference_type": "image2world", "seed": 3, "num_output_frames": 5,
        "samples": {"lift": {"prompt": "A robot.", "input_path": "robot.png"},
                    "wet street": {"prompt_path": "rain.txt", "input_path": "robot.png", "seed": 4}},
    }))  # fmt: skip
    (folder / "b_predict2.json").write_text(json.dumps(
        [{"input_video": "street.mp4", "prompt": "Cars.", "output_video": "out/cars.mp4"}]
    ))  # fmt: skip
    (folder / "c_predict1.jsonl").write_text('{"prompt": "Snow."}\n\n{"prompt": "Sun."}\n')
    (folder / "d.json").write_text("{")
    return folder


def spec(folder: Path, models: dict[str, Any], inputs: Any, **more: Any) -> Path:
    stages = {"videos": {"kind": "generate.diffusion", "resources": {"cpus": 1}, "per_shard": 3, **models, **more}}
    path = folder / "g.yaml"
    path.write_text(yaml.safe_dump({"name": "g", "inputs": inputs, "output": "out", "stages": stages}))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row | {"tar": table.with_suffix(".tar")} for table in sorted(out.rglob("videos*/*.parquet"))
            for row in layers.read_table(table).to_pylist()]  # fmt: skip


def pixels(row: dict[str, Any]) -> np.ndarray:
    """uint8 [frames, height, width, 3]"""
    data = row["tar"].read_bytes()[row["mp4_offset"] : row["mp4_offset"] + row["mp4_size"]]
    return video.sample(data, range(row["frames"]), row["width"], row["height"])


# The stage


def test_prompts_of_all_formats_become_videos(tmp_path: Path, models: dict[str, Any]) -> None:
    asked(tmp_path / "in")
    file = spec(tmp_path, models, "in")
    made = runs.go(file)
    rows = {row["name"]: row for row in rows_of(tmp_path / "out")}
    assert list(rows) == ["lift", "wet_street", "cars", "c_predict1_000001", "c_predict1_000002"]
    assert len({row["tar"] for row in rows.values()}) == 2, "three videos a shard"
    assert {name: (row["prompt"], row["given"], row["seed"], row["frames"]) for name, row in rows.items()} == {
        "lift": ("A robot.", 1, 3, 5), "wet_street": ("Rain.", 1, 4, 5), "cars": ("Cars.", 2, 1, 9),
        "c_predict1_000001": ("Snow.", 0, 1, 9), "c_predict1_000002": ("Sun.", 0, 1, 9),
    }  # fmt: skip
    for name, row in rows.items():
        data = row["tar"].read_bytes()[row["mp4_offset"] : row["mp4_offset"] + row["mp4_size"]]
        info, frames = video.measured(data)
        assert (info.width, info.height, frames, info.fps) == (WIDTH, HEIGHT, row["frames"], 16), name
        with row["tar"].open("rb") as tar:
            about = dict(layers.read_tar(tar))[name]
        assert json.loads(about[".json"])["prompt"] == row["prompt"] and about[".mp4"] == data
    films = {name: pixels(row).astype(float) for name, row in rows.items()}
    assert np.abs(films["c_predict1_000001"] - films["c_predict1_000002"]).mean() > 1, "texts count"
    told = "".join(path.read_text() for path in made.run.folder.rglob("*.jsonl"))
    assert "no-json" in told and "d.json" in told, "what is no file of prompts is named, and stops nothing"
    # again: nothing to do
    assert runs.planned(file).attempt is None


def work(folder: Path, items: list[Item] | None = None, rows: list[Any] | None = None) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    return Work("000000", items or [], rows or [], {}, folder, "f", lambda: None, lambda *_: None)


def test_a_prompt_gives_the_same_video_wherever_it_stands(tmp_path: Path, maker: diffusion.Maker) -> None:
    films = []
    for i, texts in enumerate((["Snow.", "Sun."], ["Fog.", "Wind.", "Snow."])):
        rows = [{"name": text[:-1], "prompt": text, "source": "s", "etag": "e"} for text in texts]
        made = diffusion.process(maker, work(tmp_path / str(i), rows=rows))
        with made.objects[0].open("rb") as tar:
            films.append(dict(layers.read_tar(tar))["Snow"][".mp4"])
    assert films[0] == films[1]


def test_a_list_of_pictures_with_prompts_as_inputs(tmp_path: Path) -> None:
    """Predict1's format as the spec's inputs: each line is an input of its own."""
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    lines = [{"prompt": "A.", "visual_input": "a.png"}, {"prompt": "B.", "visual_input": "b.png"}]
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = inputs.resolve([Inputs(uri=str(tmp_path / "batch.jsonl"))], Prompts.INPUT_SUFFIXES)
    items = [Item(one.uri, one.size, one.etag, caption=found.captions[one.uri]) for one in found.entries]
    made = prompts.process(work(tmp_path / "scratch", items))
    asked = [json.loads(line) for line in made.objects[0].read_text().splitlines()]
    assert [(one["name"], one["prompt"], one["given"]) for one in asked] == [("a", "A.", 1), ("b", "B.", 1)]
    assert made.counts["prompts"] == 2 and not made.bad


def test_what_cannot_be_made_is_named_and_the_rest_is_made(tmp_path: Path, maker: diffusion.Maker) -> None:
    film(tmp_path / "short.mp4", 3)
    (tmp_path / "x.png").write_text("no picture")
    asked = [
        {"name": "few", "prompt": "x", "input_path": "short.mp4"},
        {"name": "none", "prompt": "x", "input_path": "x.png"},
        {"name": "odd", "prompt": "x", "resolution": "50,48"},
        {"name": "ten", "prompt": "x", "num_output_frames": 10},
        {"name": "all", "prompt": "x", "input_path": "short.mp4", "num_output_frames": 5},
        {"name": "wide", "prompt": "x", "resolution": "32,1024"},
        {"name": "long", "prompt": "x", "num_output_frames": 65},
        {"name": "good", "prompt": "x"},
    ]  # fmt: skip
    rows = [msgspec.to_builtins(one) for one in parse(tmp_path, "a.json", json.dumps(asked))]
    made = diffusion.process(maker, work(tmp_path / "scratch", rows=rows))
    table = layers.read_table(made.objects[1]).to_pylist()
    assert {row["name"]: row["why"] for row in table} == {
        "few": "too-short", "none": "no-picture", "odd": "bad-size", "ten": "bad-frames", "all": "bad-frames",
        "wide": "too-large", "long": "too-large", "good": None,
    }  # fmt: skip
    assert made.counts["videos"] == 1 and len(made.bad) == 7
    told = "".join(one.detail for one in made.bad)
    for words in ("3 frames; 5 are gone on from", "odd: 50 x 48: 16 must divide both",
                  "wide: 9 frames of 32 x 1024: tiny-predict2.5 makes 61 of 512 x 512 at most"):  # fmt: skip
        assert words in told, words


# The maker


def test_given_frames_are_in_the_video(tmp_path: Path, maker: diffusion.Maker) -> None:
    """As the VAE knows them: what it makes of them alone."""
    path = film(tmp_path / "street.mp4", 12)
    stat = storage.stat(str(path))
    of = {"name": "x", "prompt": "Cars.", "source": "s", "etag": "e"}
    one = prompts.Request(**of, media=str(path), media_etag=stat.etag, given=2)
    frames = maker.make(one)
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    last = video.sample(path.read_bytes(), range(7, 12), WIDTH, HEIGHT)  # the last 1 + 4
    latents = maker.tokenizer.encode(torch.from_numpy(last).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    again = maker.tokenizer.decode(latents)[0].permute(1, 2, 3, 0)
    wanted = ((again + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(frames[:5].astype(float) - wanted).max() <= 1
    seen: list[int] = []
    maker.make(one, lambda: seen.append(1))
    assert len(seen) == 2, "a stopped worker leaves between steps"
    other = maker.make(prompts.Request(**of, seed=9))
    assert np.abs(other.astype(float) - frames).mean() > 1


def test_ranks_that_share_frames_make_what_one_makes(tmp_path: Path, models: dict[str, Any]) -> None:
    """Guided, and going on from a video; 13 frames are 4 latent ones. What cannot be shared is named."""
    film(tmp_path / "street.mp4")
    asked = [{"name": "words", "prompt": "Rain."}, {"name": "goes_on", "prompt": "Cars.", "input_path": "street.mp4"},
             {"name": "odd", "prompt": "Odd.", "num_output_frames": 9}]  # fmt: skip
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    found = []
    for context in (1, 2):
        (tmp_path / str(context)).mkdir()
        made = runs.go(spec(tmp_path / str(context), models, str(tmp_path / "asked.json"), frames=13, context=context,
                            resources={"cpus": 1, "workers": context}))  # fmt: skip
        assert made.plan.stage("videos").phases[-1] == ("map" if context == 1 else "gang")
        found.append({row["name"]: row for row in rows_of(tmp_path / str(context) / "out")})
    assert found[1]["odd"]["why"] == "bad-frames" and found[0]["odd"]["why"] is None
    for name in ("words", "goes_on"):
        one, two = (pixels(rows[name]).astype(float) for rows in found)
        assert one.std() > 5 and np.abs(one - two).max() <= 4 and np.abs(one - two).mean() < 0.1, name


def clips_of(folder: Path) -> list[tuple[str, dict[str, str]]]:
    """A plain data set of three clips; of one with a caption."""
    data = film(folder / "film.mp4", 12).read_bytes()
    with layers.TarWriter(folder / "000000.tar") as tar:
        for name in ("a", "b", "c"):
            about = {"uuid": name, "windows": [{"caption": f"Clip {name}."}]} if name == "b" else {"uuid": name}
            tar.add(name, {".mp4": data, ".json": json.dumps(about).encode()})
    return [("000000", {".tar": str(folder / "000000.tar")})]


def test_clips_of_a_stage_are_gone_on_from_at_their_beginning(tmp_path: Path, maker: diffusion.Maker) -> None:
    settings = msgspec.structs.replace(maker.settings, prompts="data", limit=2, per_shard=8)
    [rows] = diffusion.freeze(settings, {"data": clips_of(tmp_path)}, set())
    assert [(row["name"], row["prompt"], row["given"]) for row in rows] == [("a", "", 2), ("b", "Clip b.", 2)]
    one = videos.request(rows[1])
    each = video.sample((tmp_path / "film.mp4").read_bytes(), [0, 2, 4], WIDTH, HEIGHT)
    assert np.array_equal(media.frames(one, 3, WIDTH, HEIGHT, fps=8.0), each), "the film has 16 a second"
    with pytest.raises(BadInput, match="b: 12 frames; 9 are gone on from"):
        media.frames(one, 9, WIDTH, HEIGHT, fps=8.0)
    assert [one["name"] for one in prompts.spread([{"name": i} for i in range(10)], 3)] == [0, 3, 6]


def test_the_report_has_small_animations_of_what_was_made(tmp_path: Path, maker: diffusion.Maker) -> None:
    media = {"media": str(film(tmp_path / "a.mp4")), "given": 1, "held_out": "/out/world@v1/held_out.json"}
    rows = [{"name": name, "prompt": "x", "source": "s", "etag": "e"} | more for name, more in
            (("one", {}), ("two", media))]  # fmt: skip
    made = diffusion.process(maker, work(tmp_path, rows=rows))
    objects = dict(zip((".tar", ".parquet"), made.objects, strict=True))
    shown = diffusion.gallery(lambda suffix: objects[suffix].open("rb"), 1)
    [(title, words, webp)] = shown
    assert title == "one" and words == f"x {WIDTH}x{HEIGHT}, {FRAMES} frames at 16 a second, of words alone"
    table = layers.read_table(objects[".parquet"]).to_pylist()
    assert [row["held_out"] for row in table] == [None, "/out/world@v1/held_out.json"]
    _, (_, words, _) = diffusion.gallery(lambda suffix: objects[suffix].open("rb"), 2)
    assert words.endswith("a second, 1 latent frames given, of a held-out clip")
    with PIL.Image.open(io.BytesIO(webp)) as picture:
        assert picture.size == (WIDTH, HEIGHT) and picture.n_frames == 5, "every second of 9"


@pytest.mark.parametrize("name", ["tiny-predict1", "tiny-predict2"])
def test_the_earlier_generations(name: str, tmp_path: Path) -> None:
    """T5's vectors; EDM over a Cosmos tokenizer, and a flow that is solved over sigma."""
    torch.manual_seed(1)
    model = DiT(PRESETS[name].config)
    dit_files.save(model.state_dict(), model.config, tmp_path / "dit")
    if name == "tiny-predict1":
        config = cosmos.Config(channels=8, spatial=8, levels=(), latent_channels=16)
        files.save(cosmos.CosmosContinuous(config), tmp_path / "vae")
    else:
        files.save(wan.WanVAE(wan.Config(channels=8)), tmp_path / "vae")
    save(tmp_path / "t5", d_model=32)
    maker = diffusion.Maker(settings_of("generate.diffusion", {
        "model": name, "weights": str(tmp_path / "dit"), "tokenizer": str(tmp_path / "vae"), "steps": 2,
        "text_encoder": str(tmp_path / "t5"), "precision": "float32", "negative_prompt": "ugly", "guidance": 2.0,
        "size": [HEIGHT, WIDTH],
    }))  # fmt: skip
    path = film(tmp_path / "street.mp4", 12)
    of = {"name": "x", "prompt": "Cars.", "source": "s", "etag": "e"}
    media = {"media": str(path), "media_etag": storage.stat(str(path)).etag}
    frames = maker.make(prompts.Request(**of, **media, given=2))
    assert frames.shape == (17, HEIGHT, WIDTH, 3)
    count = maker.tokenizer.pixel_frames(2)
    assert count == (9 if name == "tiny-predict1" else 5)
    last = video.sample(path.read_bytes(), range(12 - count, 12), WIDTH, HEIGHT)
    latents = maker.tokenizer.encode(torch.from_numpy(last).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    again = ((maker.tokenizer.decode(latents)[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(frames[:count].astype(float) - again).max() <= 1
    assert np.abs(frames.astype(float) - maker.make(prompts.Request(**of, **media, given=2, seed=5))).mean() > 0.5


def test_videos_keep_their_colours(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 200]], np.uint8)
    frames = np.repeat(np.repeat(colours[:, None, None], 64, 1), 64, 2)
    video.write(tmp_path / "x.mp4", frames, 23.976, video.Coding(crf=1.0))
    data = (tmp_path / "x.mp4").read_bytes()
    info, count = video.measured(data)
    assert count == 6 and float(info.fps) == pytest.approx(23.976, abs=1e-3)
    again = video.sample(data, range(6), 64, 64)
    assert np.abs(again.astype(int) - frames).max() <= 6
    before = (tmp_path / "x.mp4").read_bytes()
    video.write(tmp_path / "y.mp4", frames, 23.976, video.Coding(crf=1.0))
    assert (tmp_path / "y.mp4").read_bytes() == before


def test_models_that_do_not_go_together(models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"makes texts of 64 channels; tiny-predict2\.5 takes 80"):
        model = DiT(type(PRESETS["tiny-predict2.5"].config)(channels=24, blocks=1, heads=2, condition_mask=True,
                                                           text_projection=80, adaln_rank=4))  # fmt: skip
        dit_files.save(model.state_dict(), model.config, tmp_path / "dit")
        diffusion.Maker(settings_of("generate.diffusion", models | {"weights": str(tmp_path / "dit")}))
    with pytest.raises(FileNotFoundError, match="weights: there is no /nowhere"):
        diffusion.Maker(settings_of("generate.diffusion", models | {"weights": "/nowhere"}))


# Files of prompts


def parse(tmp_path: Path, name: str, content: str) -> list[prompts.Request]:
    (tmp_path / name).write_text(content)
    found = prompts.requests(content.encode(), str(tmp_path / name), "e")
    for one in found:
        if one.why is not None:
            raise BadInput(one.why.uri, one.why.reason, one.why.detail)
    return found


def test_settings_of_a_file_are_those_of_its_videos(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    common = {"seed": 5, "guidance": 3, "num_output_frames": 93, "negative_prompt": "bad", "resolution": "704,1280"}
    one, two = parse(tmp_path, "a.json", json.dumps(
        {"inference_type": "text2world", **common, "samples": {"x": {"prompt": " X "}, "y": {"prompt": "Y", "seed": 6}}}
    ))  # fmt: skip
    assert (one.name, one.prompt, one.seed, one.guidance, one.frames, one.negative_prompt, one.size) == (
        "x", "X", 5, 3.0, 93, "bad", (704, 1280))  # fmt: skip
    assert (two.name, two.seed, two.given) == ("y", 6, 0)
    # as later versions have it: one sample a file
    [flat] = parse(tmp_path, "b.json", json.dumps(
        {"inference_type": "image2world", "name": "n", "prompt": "P", "input_path": "a.png", "resolution": "none"}
    ))  # fmt: skip
    assert (flat.name, flat.given, flat.media, flat.size) == ("n", 1, str(tmp_path / "a.png"), None)
    [stem] = parse(tmp_path, "some.json", '{"prompt": "P"}')
    assert stem.name == "some"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[3]", "entry 1: 3 is no object with a prompt"),
        ('{"prompt": ""}', "it has neither a prompt nor a prompt_path with words"),
        ('{"prompt_path": "gone.txt"}', "gone.txt"),
        ('{"prompt": "x", "input_path": "gone.png"}', "there is no .*gone.png"),
        ('{"prompt": "x", "inference_type": "image2world"}', "image2world goes on from something: give an input_path"),
        ('{"prompt": "x", "inference_type": "audio"}', "inference_type: 'audio'; known are text2world, image2world"),
        ('{"prompt": "x", "sead": 3}', r"unknown: sead \(did you mean seed\?\); known are .*seed"),
        ('{"samples": {"a": {"prompt": "x"}}, "stepz": 3}', "unknown: stepz"),
        ('{"prompt": "x", "seed": "three"}', "seed"),
        ('{"prompt": "x", "resolution": "720p"}', "write height and width"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse(tmp_path, "p.json", content)


WRONG = {
    '{"prompt": "Sun."': "no-json: line 2: Expecting ',' delimiter",
    '{"promt": "Fog."}': r"line 3: unknown: promt \(did you mean prompt\?\); known",
    '{"prompt": "Sea.", "visual_input": "gone.png"}': "line 4: there is no .*png: paths count from this file's folder",
    '{"prompt": "Wind.", "seed": -1}': "line 5: seed: -1: expected int >= 0",
    '{"prompt": "Rain.", "seed": 4294967296}': "line 6: seed: 4294967296: expected int <= 4294967295",
    '{"prompt": "Hail.", "num_steps": 0}': "line 7: num_steps: 0: expected int >= 1",
    '{"prompt": "Lake.", "resolution": "0,0"}': 'line 8: resolution: "0,0": expected int >= 16',
    '{"prompt": "Hill.", "num_output_frames": -4}': "line 9: num_output_frames: -4: expected int >= 1",
    '{"prompt": "Hall.", "guidance": -5}': r"line 10: guidance: -5: expected float >= 0\.0",
    '{"prompt": "Cave.", "guidance": NaN}': "line 11: guidance: NaN: expected float >= 0",
    '{"prompt": "Dune.", "inference_type": ["x"]}': r"line 12: inference_type: \['x'\]; known are",
    '{"prompt": "Dust.", "output_video": 3}': "line 13: ",
    "7": "line 14: 7 is no object with a prompt",
}  # fmt: skip


def test_bad_lines_are_named_and_the_others_are_made(tmp_path: Path) -> None:
    """Ten thousand prompts do not wait for one; names stay when it is mended. A line ends where JSON says, not within
    the words, at U+2028."""
    lines = ['{"prompt": "Snow."}', *WRONG, '{"prompt": "Ice\u2028melts."}', ""]
    path = tmp_path / "many.jsonl"
    path.write_text("\ufeff" + "\n".join(lines))
    made = prompts.process(work(tmp_path / "scratch", [Item(str(path), 1, storage.stat(str(path)).etag)]))
    asked = [json.loads(line) for line in made.objects[0].read_bytes().splitlines()]
    assert [(one["name"], one["prompt"]) for one in asked] == [
        ("many_000001", "Snow."), ("many_000015", "Ice\u2028melts.")]  # fmt: skip
    assert made.counts == {"files": 1, "prompts": 2, "media_without_prompt": 0}
    assert len(made.bad) == len(WRONG)
    for one, words in zip(made.bad, WRONG.values(), strict=True):
        assert one.uri == str(path) and re.search(words, f"{one.reason}: {one.detail}"), one
    samples = {"samples": {"a": {"prompt": "A."}, "b": 3, "c": {"prompt": ""}}}
    found = prompts.requests(json.dumps(samples).encode(), str(tmp_path / "x.json"), "e")
    assert [one.why and one.why.detail.partition(":")[0] for one in found] == [None, "sample b", "sample c"]


def test_a_file_of_prompts_as_inputs(tmp_path: Path, models: dict[str, Any]) -> None:
    """Predict1's .jsonl without pictures is what is read, no list of files."""
    path = tmp_path / "many.jsonl"
    path.write_text('{"prompt": "Snow."}\n{"prompt": "Sun."}\n')
    found = inputs.resolve([Inputs(uri=str(path))], Prompts.INPUT_SUFFIXES)
    assert [one.uri for one in found.entries] == [str(path)] and not found.captions
    with pytest.raises(inputs.InputError, match=r"many\.jsonl:1: it names no file"):
        inputs.resolve([Inputs(uri=str(path))], (".mp4",))


def test_what_is_not_wanted_counts(maker: diffusion.Maker) -> None:
    """The negative prompt of the settings, and that of a prompt; without guidance none is asked for."""
    of = {"name": "x", "prompt": "Snow.", "source": "s", "etag": "e", "guidance": 5.0}
    films = [maker.make(prompts.Request(**of, negative_prompt=words)).astype(int) for words in (None, "Fog.", "Sun.")]
    assert min(np.abs(one - other).mean() for one, other in itertools.combinations(films, 2)) > 0.5
    free = [maker.make(prompts.Request(**of | {"guidance": 0.0}, negative_prompt=words)) for words in ("Fog.", "Sun.")]
    assert np.array_equal(*free)


def test_pictures_of_a_folder_are_no_prompts(tmp_path: Path) -> None:
    made = prompts.process(work(tmp_path, [Item(str(picture(tmp_path / "a.png")), 1, "e")]))
    assert made.counts == {"files": 1, "prompts": 0, "media_without_prompt": 1}


def test_names_that_several_have_get_numbers(tmp_path: Path) -> None:
    lines = [{"name": name, "prompt": "x", "source": source, "etag": "1"} for name, source in
             (("a", "p"), ("a", "p"), ("b/c.d", "p"), ("a", "gone"), ("a", "p"))]  # fmt: skip
    path = tmp_path / "0.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = Diffusion(model="tiny-predict2.5", weights="/x", tokenizer="/y", text_encoder="/z", per_shard=3)
    planned = list(diffusion.freeze(settings, {"p": [("0", {".jsonl": str(path)})]}, {("gone", "1")}))
    assert [[row["name"] for row in rows] for rows in planned] == [["a", "a_2", "b_c_d"], ["a_3"]]
    with pytest.raises(ValueError, match="there is not one prompt"):
        list(diffusion.freeze(settings, {"p": []}, set()))


def test_ten_thousand_prompts(tmp_path: Path) -> None:
    """One file, shards that are the same ones whenever it is planned: what is made stays made."""
    lines = [json.dumps({"prompt": f"Prompt {i}.", "seed": i}) for i in range(10_000)]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(lines))
    item = Item(str(path), 1, storage.stat(str(path)).etag)
    settings = Diffusion(model="tiny-predict2.5", weights="/x", tokenizer="/y", text_encoder="/z", per_shard=16)

    def planned(folder: str) -> list[Any]:
        made = prompts.process(work(tmp_path / folder, [item]))
        assert made.counts["prompts"] == 10_000 and not made.bad
        return list(diffusion.freeze(settings, {"p": [("0", {".jsonl": str(made.objects[0])})]}, set()))

    first, again = planned("first"), planned("again")
    assert [len(rows) for rows in first] == [16] * 625 and first == again
    rows = [row for rows in first for row in rows]
    assert len({row["name"] for row in rows}) == 10_000
    assert [(rows[i]["name"], rows[i]["prompt"], rows[i]["seed"]) for i in (0, 9_999)] == [
        ("many_000001", "Prompt 0.", 0), ("many_010000", "Prompt 9999.", 9_999)]  # fmt: skip


# Settings


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "predict2.5-2B"}, r"model: .*did you mean predict2\.5-2b\?"),
        ({"model": "tiny-predict2.5"}, r"weights: tiny-predict2\.5 has no published weights"),
        ({"weights": "model.pt"}, "a path begins with / or ~"),
        ({"size": [700, 1280]}, "size: 700: a model's tokens are 16 pixels wide: make it 688 or 704"),
        ({"solver": "multistep"}, "schedule: solver multistep, schedule shifted: there are multistep over karras"),
        ({"model": "predict1-7b-text2world", "solver": "unipc", "schedule": "shifted"}, "trained as an EDM: karras"),
        ({"frames": 90}, "frames: 90: a latent frame stands for 4: make it 89 or 93"),
        ({"model": "predict1-7b-text2world", "frames": 93}, "frames: 93: a latent .* 8: make it 89 or 97"),
        ({"frames": 513}, r"frames: 513: predict2\.5-2b makes 509 frames of 1920 x 1920 at most"),
        ({"size": [704, 1936]}, r"size: 704 x 1936: predict2\.5-2b makes 509 frames"),
        ({"tokenizer": "who/knows"}, "no tokenizer is known by this name"),
    ],
)
def test_settings_that_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings_of("generate.diffusion", {"model": "predict2.5-2b"} | more)


def test_the_spec_that_people_copy() -> None:
    [found] = load(JOBS / "worlds.yaml")
    assert [stage.kind for stage in found.stages.values()] == ["generate.diffusion-prompts", "generate.diffusion"]
    asked = prompts.requests((JOBS / "worlds/robot.json").read_bytes(), str(JOBS / "worlds/robot.json"), "e")
    assert [one.name for one in asked] == ["lift", "wet_street"] and {one.seed for one in asked} == {0}


def test_the_published_models_that_are_fetched() -> None:
    settings = settings_of("generate.diffusion", {"model": "predict2_video2world_training_2b_cosmos_nemo_assets"})
    weights = "base/pre-trained/d20b7120-df3e-4911-919d-db6e08bad31c_ema_bf16.pt"
    assert settings.models() == {
        "nvidia/Cosmos-Reason1-7B": (), "nvidia/Cosmos-Predict2.5-2B": ("tokenizer.pth", weights)
    }  # fmt: skip
    settings = settings_of("generate.diffusion", {"model": "predict1-7b-video2world"})
    assert settings.models()["nvidia/Cosmos-Predict1-7B-Video2World"] == ("model.pt",)
    assert "mean_std.pt" in settings.models()["nvidia/Cosmos-Tokenize1-CV8x8x8-720p"]
